"""Hidden states of graded responses: read, kept on disk in shards, quantised, read again."""
