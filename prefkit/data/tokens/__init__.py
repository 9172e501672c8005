"""Texts as token ids, each with its weight."""
