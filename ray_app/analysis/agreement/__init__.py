"""Agreement: raters with each other, teacher and student with raters; the pairs that a human should look at again."""
