"""The first wrong step by rules alone, for questions in words."""
