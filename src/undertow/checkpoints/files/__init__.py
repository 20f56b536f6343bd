"""Files on disk: finding and fetching them, telling what they are, reading and writing their tensors."""
