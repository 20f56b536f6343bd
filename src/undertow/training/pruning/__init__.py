"""Structured pruning: a smaller U-Net of the same kind, made of the parts of a trained one that matter most."""
