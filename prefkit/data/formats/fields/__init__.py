"""What the fields of a row hold, read with checks: text, messages, blocks, weights, prompts."""
