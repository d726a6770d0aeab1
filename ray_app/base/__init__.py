"""Errors, hashing, text, schemas, storage and config: what every layer uses."""
