"""What tests ask of the embedded model `emoji`, read from its configs: whatever it is next, they stay true."""

from undertow.memory.subjects import named_model

EMOJI = named_model("emoji").subject
FACTOR = EMOJI.factor
CHANNELS, CELLS = EMOJI.unet.in_channels, EMOJI.unet.sample_size
SIDE = CELLS * FACTOR
"""Pixels of a side of the pictures that it draws."""
