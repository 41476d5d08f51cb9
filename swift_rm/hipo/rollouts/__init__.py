"""TRL's rollouts with hidden-state rewards, and the head that learns on with the policy."""
