"""Which heads, sources and numbers of labels rank responses best."""
