"""Rows of every published format, as pairs and solutions: only here is known whose row looks
how."""
