"""Synthetic demo dataset with ground truth: images, texts in eight languages, boards, searches, raters. docs/demo_world.md."""
