"""Preference losses: objectives on per-token quantities, and the fused call that computes them."""
