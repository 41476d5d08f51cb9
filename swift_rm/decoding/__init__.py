"""The Best-of-N loop, what it does with each candidate, and `best_of_n` and `BestOfNDecoding` over it."""
