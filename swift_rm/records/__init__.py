"""Rollouts and preference pairs as JSON lines: read, checked, resumed."""
