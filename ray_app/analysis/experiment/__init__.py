"""Experiments: arms that differ from a run in a few settings, trained, measured on the same pairs, and compared in a table."""
