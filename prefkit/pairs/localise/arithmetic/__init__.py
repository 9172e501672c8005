"""Calculations in prose: read, and checked."""
