"""vLLM as a library: Best-of-N, early stopping, and what is recorded for the parity check."""
