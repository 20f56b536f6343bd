"""What several adapters do to each other, and what is decided about it: conflicts, strategies, decisions."""
