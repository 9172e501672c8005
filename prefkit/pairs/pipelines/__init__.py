"""From a question to its pairs, one file a method; nothing here knows a model or a server."""
