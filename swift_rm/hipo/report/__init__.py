"""What became of a run: its log, its figures, its page."""
