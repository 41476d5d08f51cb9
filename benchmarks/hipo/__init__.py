"""What HiPO's methods teach, and what rollouts with rewards cost."""
