"""Attention over rows of several sequences without padding: how it is made, and proved."""
