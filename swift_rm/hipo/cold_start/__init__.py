"""The data and the supervised training that come before reinforcement."""
