"""Attention over rows of several sequences: on a GPU, on a CPU, in plain torch, shared."""
