"""A CLIP text encoder's forward on stand-ins, as `encoders.clip` and `encoders.clip_network` compute it."""

from undertow.memory.attention_walk import attend
from undertow.memory.ledger import Array
from undertow.memory.operations import Operations
from undertow.memory.work import TextNetwork, VisionNetwork


def encode_text(ops: Operations, network: TextNetwork, chunks: int) -> Array:
    """The hidden states of a prompt of this many chunks."""
    with ops.ledger.at("text_model.embeddings", "embeddings"):
        embedded = ops.ledger.new((chunks, network.positions, network.width), "embedding")
        hidden = ops.elementwise("add", embedded)
    with ops.ledger.repeated(network.layers), ops.ledger.at("text_model.encoder.layers.0"):
        hidden = clip_layer(ops, network, hidden)
    with ops.ledger.at("text_model.final_layer_norm"):
        return ops.layer_norm(hidden)


def clip_layer(ops: Operations, network: TextNetwork | VisionNetwork, x: Array) -> Array:
    """A layer of either of CLIP's networks."""
    module = ops.ledger.module
    with ops.ledger.at(f"{module}.self_attn", "self_attention"):
        hidden = ops.elementwise("add", x, _attention(ops, network, ops.layer_norm(x)))
    with ops.ledger.at(f"{module}.mlp", "feed_forward"):
        return ops.elementwise("add", hidden, _feed_forward(ops, network, ops.layer_norm(hidden)))


def _attention(ops: Operations, network: TextNetwork | VisionNetwork, x: Array) -> Array:
    query, key, value = (ops.plain_linear(x, network.width) for _ in range(3))
    seen = attend(ops, query, key, value, network.heads)
    return ops.plain_linear(seen, network.width)


def _feed_forward(ops: Operations, network: TextNetwork | VisionNetwork, x: Array) -> Array:
    return ops.plain_linear(_activated(ops, ops.plain_linear(x, network.intermediate), network), network.width)


def _activated(ops: Operations, inner: Array, network: TextNetwork | VisionNetwork) -> Array:
    if network.activation == "gelu":
        return ops.elementwise("gelu", inner)
    gate = _sigmoid(ops, inner)
    return ops.elementwise("mul", inner, gate)


def _sigmoid(ops: Operations, inner: Array) -> Array:
    return ops.elementwise("sigmoid", ops.elementwise("mul", inner))
