"""The embedded default: a tiny model, its own step pairs, and a world that checks every step."""
