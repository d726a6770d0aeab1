"""What a pin says, field by field: its own texts plus what its users did with it."""
