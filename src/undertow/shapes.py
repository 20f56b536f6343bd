"""Names of tensor shapes, checked while tests run (jaxtyping + beartype) and without cost otherwise.

Glossary of dimensions:

    batch      rows that share a forward (a row is a request x guidance branch)
    channels   feature channels; 4 for Stable Diffusion latents, 3 for pixels
    height, width   in cells of the tensor at hand (latent cells, or pixels for pixel U-Nets)
    tokens     positions of a sequence: text tokens, or height x width cells of a feature map
    queries, keys   tokens that attend, and tokens that they attend to
    heads, head_dim   attention heads and the width of one head
    dim        width of an embedding
"""

from jaxtyping import Bool, Float, Shaped
from torch import Tensor

AnyTensor = Shaped[Tensor, "..."]
"""A tensor of any shape and type: what lies in a file."""

Latents = Float[Tensor, "batch channels height width"]
"""Noisy input and prediction of a U-Net: latents, or pixels in [-1, 1]."""

FeatureMap = Float[Tensor, "batch channels height width"]
"""Hidden activations of a convolutional stage."""

Sequence = Float[Tensor, "batch tokens dim"]
"""Hidden activations of a transformer stage."""

Embedding = Float[Tensor, "batch dim"]
"""One vector per row: time embedding, pooled text."""

Timesteps = Shaped[Tensor, "batch"]
"""The number the network was trained to receive, one per row; float or integer."""

Sigmas = Float[Tensor, "batch"]
"""Noise standard deviation per row, float32 or float64."""

Heads = Float[Tensor, "batch heads tokens head_dim"]
"""A sequence split into heads."""

Queries = Float[Tensor, "batch heads queries head_dim"]

Keys = Float[Tensor, "batch heads keys head_dim"]
"""Keys or values, split into heads."""

AttentionMask = Bool[Tensor, "batch #heads #queries keys"]
"""True where a query may attend to a key; broadcast over heads and queries."""
