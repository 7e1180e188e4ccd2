"""A workload replayed through the scheduler's own `plan` in virtual time: pure, as everything here; docs/simulation.md tells how."""
