"""undertow: a diffusion U-Net engine."""
