"""Finding and loading language models, their shape, and what is used of transformers' generation."""
