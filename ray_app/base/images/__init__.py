"""Untrusted images: fetched, decoded and scaled within bounds."""
