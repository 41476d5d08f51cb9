"""What a rollout is worth, and the advantages that each algorithm makes of a group."""
