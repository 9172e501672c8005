"""What the model reads of a row, as text: chat templates, turns, thoughts, responses."""
