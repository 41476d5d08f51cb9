"""Checks that the hidden states and rewards read here, or in an inference engine, are those of transformers."""
