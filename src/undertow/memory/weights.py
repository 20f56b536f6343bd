"""How many numbers the networks' weights are, from their architectures alone; tests hold them to the networks."""

from itertools import pairwise

from undertow.adapters.control.config import ControlNetConfig
from undertow.memory.work import TextNetwork, VAENetwork, VisionNetwork
from undertow.unet.config import ClassLabels, CrossAttention, SelfAttention, TextTime, UNetConfig

Attention = CrossAttention | SelfAttention | None

REFERENCE_TOKENS = 16
"""Of one reference picture, at most: 4 of a plain IP-Adapter, 16 of those called "plus"."""

RESAMPLER_LAYERS = 4
"""Of an IP-Adapter Plus."""


def linear(inputs: int, outputs: int, *, bias: bool = True) -> int:
    return inputs * outputs + bias * outputs


def conv(inputs: int, outputs: int, kernel: int = 3) -> int:
    return inputs * outputs * kernel**2 + outputs


def norm(channels: int) -> int:
    return 2 * channels


def unet_weights(config: UNetConfig) -> int:
    """Numbers of a U-Net."""
    first = config.levels[0].channels
    decoder = sum(_up_block(config, index) for index in range(len(config.levels)))
    return encoder_weights(config) + decoder + norm(first) + conv(first, config.out_channels)


def largest_convolution(config: UNetConfig) -> int:
    """Numbers of the largest layer: a convolution of the widest level and a skip connection."""
    widest = max(level.channels for level in config.levels)
    return conv(2 * widest, widest)


def encoder_weights(config: UNetConfig) -> int:
    """Numbers of embeddings, encoder and middle block: what a ControlNet shares with its U-Net."""
    first = config.levels[0].channels
    down = sum(_down_block(config, index) for index in range(len(config.levels)))
    return _embeddings(config) + conv(config.in_channels, first) + down + _middle(config)


def controlnet_weights(config: ControlNetConfig) -> int:
    """Numbers of a ControlNet."""
    first, widths = config.unet.levels[0].channels, config.hint_channels
    hint = conv(config.hint_in, widths[0]) + conv(widths[-1], first)
    hint += sum(conv(a, a) + conv(a, b) for a, b in pairwise(widths))
    skips = [channels for channels, _, _ in config.unet.skip_shapes(1, 1)]
    outputs = sum(conv(width, width, 1) for width in (*skips, skips[-1]))
    return encoder_weights(config.unet) + hint + outputs


def vae_weights(network: VAENetwork) -> int:
    """Numbers of an autoencoder."""
    channels, moments = network.level_channels, 2 * network.latent_channels
    encoder = conv(network.in_channels, channels[0]) + norm(channels[-1]) + conv(channels[-1], moments)
    decoder = conv(network.latent_channels, channels[-1]) + norm(channels[0]) + conv(channels[0], network.out_channels)
    for order, resnets in ((channels, network.resnets), (channels[::-1], network.resnets + 1)):
        for index, width in enumerate(order):
            before = order[max(index - 1, 0)]
            blocks = resnet(before, width, None) + (resnets - 1) * resnet(width, width, None)
            blocks += conv(width, width) if index < len(order) - 1 else 0
            encoder, decoder = (encoder + blocks, decoder) if order is channels else (encoder, decoder + blocks)
    middle = 2 * resnet(channels[-1], channels[-1], None)
    middle += _attention(SelfAttention(heads=1), channels[-1], 1, None) if network.middle_attention else 0
    quant = conv(moments, moments, 1) if network.quant_conv else 0
    post = conv(network.latent_channels, network.latent_channels, 1) if network.post_quant_conv else 0
    return encoder + decoder + 2 * middle + quant + post


def text_weights(network: TextNetwork) -> int:
    """Numbers of a text encoder, with all its layers."""
    width, inner = network.width, network.intermediate
    layer = 4 * linear(width, width) + linear(width, inner) + linear(inner, width) + 2 * norm(width)
    projection = 0 if network.projection is None else linear(width, network.projection, bias=False)
    return (network.vocabulary + network.positions) * width + network.layers * layer + norm(width) + projection


def vision_weights(network: VisionNetwork) -> int:
    """Numbers of an image encoder."""
    width, inner = network.width, network.intermediate
    layer = 4 * linear(width, width) + linear(width, inner) + linear(inner, width) + 2 * norm(width)
    patches = network.channels * width * network.patch_size**2
    embeddings = width + patches + network.tokens * width
    return embeddings + 2 * norm(width) + network.layers * layer + linear(width, network.projection, bias=False)


def image_prompt_weights(config: UNetConfig, features: int) -> int:
    """Numbers of an IP-Adapter Plus, which other kinds have fewer of: keys and values beside every cross-attention, and
    a resampler of features (`adapters.image_prompt.projection.PlusProjection`)."""
    context = config.context_dim
    assert context is not None
    pairs = sum(2 * linear(context, width, bias=False) for width in config.cross_attentions().values())
    look = 2 * norm(context) + 4 * linear(context, context, bias=False)
    feed_forward = norm(context) + 2 * linear(context, 4 * context, bias=False)
    ends = linear(features, context) + linear(context, context) + norm(context)
    return pairs + REFERENCE_TOKENS * context + ends + RESAMPLER_LAYERS * (look + feed_forward)


def transformer_weights(config: UNetConfig) -> int:
    """Numbers of the transformers in a U-Net, which is what most LoRA change."""
    found = sum(
        _layer(config, level.attention, level.channels, depth)
        for level in config.levels
        for depth in (*level.encoder_depths(), *level.decoder_depths())
    )
    middle = config.middle
    return found + sum(_layer(config, middle.attention, config.levels[-1].channels, depth) for depth in middle.depths())


def resnet(inputs: int, outputs: int, embedding: int | None) -> int:
    """Numbers of a ResBlock."""
    shift = 0 if embedding is None else linear(embedding, outputs)
    shortcut = 0 if inputs == outputs else conv(inputs, outputs, 1)
    return norm(inputs) + conv(inputs, outputs) + shift + norm(outputs) + conv(outputs, outputs) + shortcut


def _embeddings(config: UNetConfig) -> int:
    width, sinusoid = config.embedding_dim, config.timestep_sinusoid_dim
    guidance = 0 if config.guidance_dim is None else linear(config.guidance_dim, sinusoid, bias=False)
    numbers = linear(sinusoid, width) + linear(width, width) + guidance
    match config.added:
        case TextTime(pooled_dim=pooled, ids=ids, sinusoid_dim=dim):
            return numbers + linear(pooled + ids * dim, width) + linear(width, width)
        case ClassLabels(rows=rows):
            return numbers + rows * width
        case None:
            return numbers


def _down_block(config: UNetConfig, index: int) -> int:
    level, before = config.levels[index], config.levels[max(index - 1, 0)].channels
    inputs = (before, *(level.channels,) * (level.resnets - 1))
    numbers = sum(resnet(width, level.channels, config.embedding_dim) for width in inputs)
    numbers += sum(_layer(config, level.attention, level.channels, depth) for depth in level.encoder_depths())
    return numbers + (conv(level.channels, level.channels) if index < len(config.levels) - 1 else 0)


def _middle(config: UNetConfig) -> int:
    channels, middle = config.levels[-1].channels, config.middle
    numbers = middle.resnets * resnet(channels, channels, config.embedding_dim)
    return numbers + sum(_layer(config, middle.attention, channels, depth) for depth in middle.depths())


def _up_block(config: UNetConfig, index: int) -> int:
    levels = config.levels[::-1]
    level, below = levels[index], levels[max(index - 1, 0)].channels
    above = levels[min(index + 1, len(levels) - 1)].channels
    hidden = (below, *(level.channels,) * level.resnets)
    skips = (*(level.channels,) * level.resnets, above)
    inputs = [a + b for a, b in zip(hidden, skips, strict=True)]
    numbers = sum(resnet(width, level.channels, config.embedding_dim) for width in inputs)
    numbers += sum(_layer(config, level.attention, level.channels, depth) for depth in level.decoder_depths())
    return numbers + (conv(level.channels, level.channels) if index < len(levels) - 1 else 0)


def _layer(config: UNetConfig, kind: Attention, channels: int, depth: int) -> int:
    return 0 if kind is None else _attention(kind, channels, depth, config.context_dim)


def _attention(kind: CrossAttention | SelfAttention, channels: int, depth: int, context: int | None) -> int:
    if isinstance(kind, SelfAttention):
        return norm(channels) + 4 * linear(channels, channels)
    assert context is not None
    own = 3 * linear(channels, channels, bias=False) + linear(channels, channels)
    text = linear(channels, channels, bias=False) + 2 * linear(context, channels, bias=False)
    text += linear(channels, channels)
    feed_forward = linear(channels, 8 * channels) + linear(4 * channels, channels)
    block = 3 * norm(channels) + own + text + feed_forward
    return norm(channels) + 2 * linear(channels, channels) + depth * block
