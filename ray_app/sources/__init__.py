"""Readers of external files: adapters, limits, checks, and what a run must not learn from."""
