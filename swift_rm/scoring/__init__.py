"""Rewards of responses that exist already."""
