"""Training: one loop (`fit`), and the losses and datasets of pixel models, LoRA, ControlNet and image prompts."""
