"""One batch of a training step: the forward, and the loss computed inside it."""
