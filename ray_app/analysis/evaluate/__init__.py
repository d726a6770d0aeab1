"""Evaluate: how well teacher, student and baselines agree with humans, with bootstrap intervals."""
