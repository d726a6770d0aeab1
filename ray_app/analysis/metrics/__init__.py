"""Judgments, scores of every system, metrics and confidence intervals."""
