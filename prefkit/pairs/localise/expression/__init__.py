"""Questions that are an arithmetic expression, and the steps that solve them."""
