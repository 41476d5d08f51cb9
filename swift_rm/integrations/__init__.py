"""Thin adapters to other libraries, each imported by who uses it."""
