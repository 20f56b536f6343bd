"""Attention kernels: interchangeable functions `(query, key, value, mask) -> output`, and a pure chooser."""
