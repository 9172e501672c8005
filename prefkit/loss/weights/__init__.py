"""Weights of tokens and of pairs, made of what a step has computed, by a function with a name."""
