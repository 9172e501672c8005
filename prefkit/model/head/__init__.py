"""The language-model head, fused inside the model's own forward."""
