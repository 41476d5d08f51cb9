"""Rewards inside vLLM."""
