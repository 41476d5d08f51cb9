"""A server elsewhere, asked for candidates that are ranked here."""
