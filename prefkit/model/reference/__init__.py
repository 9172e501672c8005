"""The frozen reference: live, as cached log-probabilities, or as cached hidden states."""
