"""Which versions of vLLM the adapters go with, and what they use of it."""
