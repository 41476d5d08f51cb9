"""Language models behind an API: sampled, and their responses ranked, by the log-probabilities that come back."""
