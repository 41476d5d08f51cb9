"""What scoring while decoding costs, and what pruning and selection are worth."""
