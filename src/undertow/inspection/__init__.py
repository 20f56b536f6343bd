"""Looking inside: what flows through a network."""
