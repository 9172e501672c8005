"""A build from questions to a file of pairs: driver, manifest, shards, options."""
