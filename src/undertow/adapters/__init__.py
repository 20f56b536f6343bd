"""What is added to a model for one request: LoRA and its kin, and whatever else goes through a port of the U-Net."""
