"""The kernels over logits, one folder a backend, with the same three functions in each."""
