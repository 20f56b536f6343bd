"""A CLIP vision network's forward on stand-ins, as `encoders.clip_network.ClipVision` computes it."""

from undertow.memory.ledger import Array
from undertow.memory.operations import Operations
from undertow.memory.text_walk import clip_layer
from undertow.memory.work import VisionNetwork


def see_pictures(ops: Operations, network: VisionNetwork, count: int) -> tuple[Array, Array]:
    """The pooled vectors of so many pictures, and their hidden states before the last layer."""
    side = network.image_size
    with ops.ledger.at("vision_model.embeddings", "embeddings"):
        pixels = ops.ledger.new((count, network.channels, side, side), "pixels")
        patches = _patches(ops, network, pixels)
        joined = ops.ledger.new((count, network.tokens, network.width), "cat")
        del patches
        embedded = ops.elementwise("add", joined)
        del joined
    with ops.ledger.at("vision_model.pre_layrnorm"):
        before = ops.layer_norm(embedded)
        del embedded
        hidden = ops.ledger.new(before.shape, "add")  # from the second layer on another than the states before it
    with ops.ledger.repeated(network.layers), ops.ledger.at("vision_model.encoder.layers.0"):
        hidden = clip_layer(ops, network, hidden)
    with ops.ledger.at("visual_projection"):
        pooled = ops.plain_linear(ops.ledger.new((count, network.width), "layer_norm"), network.projection)
    del hidden, pixels
    return pooled, before


def _patches(ops: Operations, network: VisionNetwork, pixels: Array) -> Array:
    """A convolution without overlaps: oneDNN takes the pixels and the weights in an order of its own."""
    count, grid = pixels.shape[0], network.image_size // network.patch_size
    ops.ledger.count(
        "conv", count, network.channels, network.width, *pixels.shape[2:], network.patch_size, network.patch_size
    )
    workspace = ops.conv_workspace(pixels.shape, network.width, network.patch_size, network.patch_size)
    return ops.ledger.new((count, network.width, grid, grid), "conv2d", workspace=workspace)
