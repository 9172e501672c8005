"""Where a solution states its answer."""
