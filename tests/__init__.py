"""Tests, in tiers: see conftest.py."""
