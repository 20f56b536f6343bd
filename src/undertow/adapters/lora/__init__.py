"""LoRA (arXiv:2106.09685) and its kin: what their files change in a network, and how that is carried out."""
