"""What samples: a model here, or any OpenAI-compatible server, behind one small interface."""
