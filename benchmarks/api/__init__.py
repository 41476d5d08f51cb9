"""Rewards from the log-probabilities of a real server."""
