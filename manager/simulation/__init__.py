"""`moorage simulate`: what is replayed, and how its figures are shown; the simulation itself is in domain/simulation."""
