"""Checkpoints that are complete or refused, and runs that go on from them exactly."""
