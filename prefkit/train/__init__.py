"""Training: configuration, trainer, metrics, checkpoints. Imports stay lazy (see `fields`)."""
