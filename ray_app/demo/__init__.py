"""A small world with a known truth: pictures, texts in eight languages, boards, searches, raters. docs/demo_world.md."""
