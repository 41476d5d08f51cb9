"""Sampling on Ray: what more actors bring, and what is lost when they are killed."""
