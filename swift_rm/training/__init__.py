"""Reward heads from hidden states: banks, losses, training on files, stores, or while sampling."""
