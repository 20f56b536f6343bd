"""Building blocks of the networks: layers, attention, residual blocks, resampling, embeddings."""
