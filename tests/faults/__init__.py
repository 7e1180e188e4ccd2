"""Faults on purpose: real processes, real PostgreSQL, real Docker. `make faults`, `python -m tests.faults`."""
