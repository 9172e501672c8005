"""Rows of a stream, read, checked and tokenised as they are needed."""
