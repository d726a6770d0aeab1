"""Measure rankings with few human labels: the teacher's labels on many queries, corrected by humans on some."""
