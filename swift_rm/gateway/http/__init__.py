"""HTTP: bodies in, replies out, the log, the metrics and the description of the API."""
