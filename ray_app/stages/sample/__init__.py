"""Sampling of the (query, pin) pairs that the teacher labels, each with its inclusion probability."""
