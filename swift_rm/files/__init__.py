"""Whole-file writes, appended lines, time limits, versions: what has no idea of language models."""
