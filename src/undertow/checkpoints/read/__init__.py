"""Weights into networks, strictly: every tensor present, none left over, shapes equal."""
