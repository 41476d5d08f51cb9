"""vLLM's own server: rewards in its replies."""
