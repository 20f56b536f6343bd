"""What a model's scheduler_config.json says, in our words: its levels of noise, and what it is drawn with. Without
torch, so that a request is checked against them at the door; `diffusion` and `sampling` do the mathematics."""
