"""Hidden states and logits read while a model runs: taps, the streaming reward, and the proofs that states go with tokens."""
