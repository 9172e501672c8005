"""What the operators share; knows none of them."""
