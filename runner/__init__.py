"""The program inside every container; standard library only."""
