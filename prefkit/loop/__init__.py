"""The loss of a batch in anybody's training loop: inside the forward of the wrapped model."""
