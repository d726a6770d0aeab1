"""Models that exist only to be compared: what each text feature and each number of labels is worth."""
