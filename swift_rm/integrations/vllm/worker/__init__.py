"""Inside vLLM's worker process: the rows of each step are matched with tokens, and the heads score them."""
