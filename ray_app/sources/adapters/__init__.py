"""Adapters, one per format of external files."""
