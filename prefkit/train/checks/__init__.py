"""What of a run cannot work, told before anything is loaded; `entry` has the order."""
