"""What is asked of models: the fused head, attention without padding, the reference."""
