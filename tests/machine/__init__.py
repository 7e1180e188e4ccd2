"""A state machine of everything that may happen to sessions, drawn by hypothesis, against a real PostgreSQL."""
