"""Tasks: where questions come from and how responses are graded, one task a file."""
