"""What the student's vectors are worth for related pins, boards and the home feed, beside the encoder they come from."""
