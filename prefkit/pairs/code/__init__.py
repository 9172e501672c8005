"""Solutions with code steps: blocks, the interpreter that runs them, sampling that stops for it."""
