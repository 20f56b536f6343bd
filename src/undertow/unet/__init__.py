"""One U-Net for every Stable Diffusion family and for class-conditional pixel models."""
