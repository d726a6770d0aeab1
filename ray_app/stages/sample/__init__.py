"""Which (query, pin) pairs the teacher labels, each with its probability of having been drawn."""
