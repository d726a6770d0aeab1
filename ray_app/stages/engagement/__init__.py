"""Engagement rates of pins, and a two-tower model of queries and pins trained on the search log."""
