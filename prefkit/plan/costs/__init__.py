"""What a run takes: memory of body and head, work, and torch's own tracker of a step."""
