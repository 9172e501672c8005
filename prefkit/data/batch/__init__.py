"""Tokenised pairs as batches: padded, packed, or end to end in one row that shares prefixes."""
