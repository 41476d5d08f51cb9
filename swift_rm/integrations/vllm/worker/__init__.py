"""Inside vLLM's worker process: which rows belong to which token, and what the head says of them."""
