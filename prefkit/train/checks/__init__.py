"""What of a run cannot work, told before anything is loaded."""
