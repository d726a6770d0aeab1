"""Analyses: read tables, write tables and pages."""
