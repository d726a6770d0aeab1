"""Worth of the student's embeddings for related pins, boards and the home feed, beside the encoder they come from."""
