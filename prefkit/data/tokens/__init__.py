"""Texts as token ids, each with its weight: chat templates, responses, offsets."""
