"""Decoding and encoding on stand-ins, step by step as `vae.execute` does without tiles."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from undertow.memory import weights
from undertow.memory.ledger import Array
from undertow.memory.operations import Operations
from undertow.memory.unet_layers import spatial_self_attention
from undertow.memory.work import VAENetwork

DOUBLED_CELLS = 1024
"""As in `nn.matmul`, which imports torch; a test holds them equal."""

ATTENDED, KEPT, SMALL_BYTES = 9, 7.2, 2**16
TILE_NUMBERS, HALF_TILE_NUMBERS = 5_500_000, 8_000_000
"""What `vae.plan.smallest_budget` comes to: so many maps of the lowest resolution for attention, which is computed
whole, and what is no map; or maps that are kept, and a tile at the published width. A test holds it to the planner."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VAESteps:
    """The steps of one autoencoder. converted: its weights are stored in another type and converted layer by layer."""

    network: VAENetwork
    ops: Operations
    converted: bool = False

    @property
    def last(self) -> bool:
        """Whether channels lie last in memory, see `nn.memory_order`: then nothing is copied for a convolution."""
        machine = self.ops.machine
        return self.ops.dtype == "bfloat16" and machine.device == "cpu" and machine.bfloat16 and not machine.amx

    def res_block(self, x: Array, outputs: int) -> Array:
        """Two segments: the first convolution, whose input lives on as what is remembered, and the second."""
        hidden = self._norm_conv(x, outputs)
        if x.shape[1] == outputs:
            return self._norm_conv(hidden, outputs)  # added in place
        result = self._norm_conv(hidden, outputs)
        self.conv_plain(x, outputs, 1)
        return result

    def _norm_conv(self, x: Array, outputs: int) -> Array:
        return self.conv(self.norm_silu(x), outputs)

    def norm_silu(self, x: Array) -> Array:
        """GroupNorm, and SiLU in place."""
        return self.ops.group_norm(x, self.network.norm_groups, last=False)

    def conv(self, x: Array, outputs: int, kernel: int = 3, *, stride: int = 1) -> Array:
        """A convolution, whose input and output are copied into the layout that it computes in and back, but for 1x1
        kernels and where channels lie last."""
        padded = x
        if stride == 2:
            rows, channels, height, width = x.shape
            padded = self.ops.ledger.new((rows, channels, height + 1, width + 1), "pad")
        made = self.conv_plain(padded, outputs, kernel, stride=stride)
        if kernel == 1 or self.last:
            return made
        return self.ops.ledger.new(made.shape, "contiguous")

    def conv_plain(self, x: Array, outputs: int, kernel: int, *, stride: int = 1) -> Array:
        """One whose output stays in the layout that it computes in."""
        rows, inputs, height, width = x.shape
        shape = (rows, inputs, height // stride * stride, width // stride * stride)
        with self._converted(weights.conv(inputs, outputs, kernel)):
            if kernel == 1 and not self.last:
                return self._mix_channels(x, outputs)
            with self.ops.ledger.held(*([] if self.last else [x.shape])):
                return self.ops.conv(Array(shape, x.buffer, x.item), outputs, kernel, stride=stride)

    def _mix_channels(self, x: Array, outputs: int) -> Array:
        """`nn.matmul`: a product for each row of the batch, joined where there are several."""
        rows, inputs, height, width = x.shape
        self.ops.ledger.count("linear", rows * height * width, inputs, outputs)
        workspace = self.ops.product_workspace(outputs, inputs, height * width)
        made = self.ops.ledger.new((rows, outputs, height, width), "linear", workspace=workspace)
        return self.ops.ledger.new(made.shape, "stack") if rows > 1 else made

    @contextmanager
    def _converted(self, numbers: int) -> Generator[None]:
        with self.ops.ledger.held(*(((numbers,),) if self.converted else ())):
            yield

    def attend(self, x: Array) -> Array:
        """Query and key are computed once before, to be looked at."""
        channels = x.shape[1]
        with self._converted(weights.norm(channels) + 4 * weights.linear(channels, channels)):
            self._looked_at(x)
            first = self.ops.ledger.new(x.shape, "contiguous") if self.last else x
            made = spatial_self_attention(self.ops, first, 1, self.network.norm_groups, copied=True)
            return self.ops.ledger.new(made.shape, "contiguous") if self.last else made

    def _looked_at(self, x: Array) -> None:
        rows, channels, height, width = x.shape
        first = self.ops.ledger.new(x.shape, "contiguous") if self.last else x
        tokens = self.ops.group_norm(first, self.network.norm_groups, last=False).view(rows, height * width, channels)
        query = self.ops.linear(tokens, channels, copied=True)
        self.ops.linear(tokens, channels, copied=True)
        del query


def smallest_bytes(network: VAENetwork, cells: tuple[int, int], whole: int, item: int) -> int:
    """The least activations within which a picture of this many cells can be decoded or encoded exactly, in tiles:
    never below what the planner finds, and hardly above it where attention decides, from about 80x80 cells on. whole:
    what it takes without tiles."""
    lowest = network.level_channels[-1] * cells[0] * cells[1] * item
    tile = (TILE_NUMBERS if item == 4 else HALF_TILE_NUMBERS) * max(network.level_channels) ** 2 // 512**2 * item
    return min(whole, max(ATTENDED * lowest + SMALL_BYTES, int(KEPT * lowest) + tile))


def decode(steps: VAESteps, latents: Array) -> Array:
    """`vae.program.decode_program`, executed."""
    network, at = steps.network, steps.ops.ledger.at
    channels = network.level_channels[::-1]
    hidden = latents
    if network.post_quant_conv:
        with at("post_quant_conv", "convolutions", len(channels) - 1):
            hidden = steps.conv(hidden, network.latent_channels, 1)
    with at("decoder.conv_in", "convolutions", len(channels) - 1):
        hidden = steps.conv(hidden, channels[0])
    hidden = _middle(steps, "decoder.mid_block", hidden, len(channels) - 1)
    for index, width in enumerate(channels):
        level = len(channels) - 1 - index
        for layer in range(network.resnets + 1):
            with at(f"decoder.up_blocks.{index}.resnets.{layer}", "convolutions", level):
                hidden = steps.res_block(hidden, width)
        if index < len(channels) - 1:
            with at(f"decoder.up_blocks.{index}.upsamplers.0", "convolutions", level - 1):
                hidden = _doubled(steps, hidden)
    with at("decoder.conv_out", "convolutions", 0):
        return steps.conv(steps.norm_silu(hidden), network.out_channels)


def encode(steps: VAESteps, pixels: Array) -> Array:
    """`vae.program.encode_program`, executed."""
    network, at = steps.network, steps.ops.ledger.at
    channels = network.level_channels
    with at("encoder.conv_in", "convolutions", 0):
        hidden = steps.conv(pixels, channels[0])
    for index, width in enumerate(channels):
        for layer in range(network.resnets):
            with at(f"encoder.down_blocks.{index}.resnets.{layer}", "convolutions", index):
                hidden = steps.res_block(hidden, width)
        if index < len(channels) - 1:
            with at(f"encoder.down_blocks.{index}.downsamplers.0", "convolutions", index):
                hidden = steps.conv(hidden, width, stride=2)
    hidden = _middle(steps, "encoder.mid_block", hidden, len(channels) - 1)
    moments = 2 * network.latent_channels
    with at("encoder.conv_out", "convolutions", len(channels) - 1):
        hidden = steps.conv(steps.norm_silu(hidden), moments)
    if network.quant_conv:
        with at("quant_conv", "convolutions", len(channels) - 1):
            hidden = steps.conv(hidden, moments, 1)
    return hidden


def _middle(steps: VAESteps, name: str, hidden: Array, level: int) -> Array:
    at, channels = steps.ops.ledger.at, hidden.shape[1]
    with at(f"{name}.resnets.0", "convolutions", level):
        hidden = steps.res_block(hidden, channels)
    if steps.network.middle_attention:
        with at(f"{name}.attentions.0", "self_attention", level):
            hidden = steps.attend(hidden)
    with at(f"{name}.resnets.1", "convolutions", level):
        return steps.res_block(hidden, channels)


def _doubled(steps: VAESteps, x: Array) -> Array:
    """`vae.steps.ConvolveDoubled`."""
    rows, channels, height, width = x.shape
    shape = (rows, channels, 2 * height, 2 * width)
    if height * width >= DOUBLED_CELLS and steps.ops.machine.device == "cpu" and steps.ops.dtype != "float16":
        made = steps.ops.ledger.new(shape, "empty")
        for _ in range(4):
            with steps.ops.ledger.held((weights.conv(channels, channels, 2),)):
                steps.conv_plain(x, channels, 2)
        return made
    workspace = 5 * x.numbers * x.item  # both in the order in which it is computed
    larger = steps.ops.ledger.new(shape, "interpolate", workspace=workspace)
    return steps.conv(larger, channels)
