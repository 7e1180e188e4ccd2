"""The daemon on GPU hosts, and the manager's client for it."""
