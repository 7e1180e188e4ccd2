"""A simulation: real loops, real decisions and real SQL in virtual time, among seeded faults. Nothing waits; a seed replays."""
