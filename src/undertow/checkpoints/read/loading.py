"""Fills a network that was built on the meta device, one tensor at a time, strictly."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import nn

from undertow.attention.policy import AttentionPolicy
from undertow.checkpoints.health import Health, Use
from undertow.checkpoints.identify.checkpoint import Checkpoint, PartSource
from undertow.checkpoints.keymap.prefixes import Component
from undertow.checkpoints.read.dtypes import stored_dtype
from undertow.nn.quantized import quantize_layers, quantized
from undertow.quantization import Scheme
from undertow.shapes import AnyTensor
from undertow.state_dicts import (
    Differences,
    Shapes,
    compare_shapes,
    require_layers,
    same_but_for_trailing_ones,
    shapes_of,
)
from undertow.unet.unet import UNet
from undertow.vae.autoencoder import AutoencoderKL

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How tensors become parameters.

    dtype: the type that values are rounded to; `None` keeps the file's. compute_dtype: the type that the parameters
    then have, if it is another one (`dtypes.PartDType`). mmap: parameters stay views of the file's read-only mapping
    where type and device allow, which loads at once and shares memory between processes, as long as nobody changes the
    file. channels_last: convolutions in the memory layout that their libraries compute in. validate: check every value
    while it is loaded. attention: the kernel of a U-Net, see `attention.chosen.kernel_named`. quantized: layers by our
    names whose weights are quantized, from the numbers of the file and not from rounded ones.
    """

    dtype: torch.dtype | None = None
    compute_dtype: torch.dtype | None = None
    device: torch.device | str | None = None
    mmap: bool = False
    channels_last: bool = False
    validate: bool = True
    attention: str | AttentionPolicy = "auto"
    quantized: Mapping[str, Scheme] = field(default_factory=dict)

    def computing(self, source: PartSource) -> torch.dtype:
        """The type that the parameters of a part have."""
        if self.compute_dtype is not None:
            return self.compute_dtype
        return stored_dtype(source) if self.dtype is None else self.dtype


def load_network(network: Network, source: PartSource, options: LoadOptions, health: Health) -> Network:
    """`network`, which was built on the meta device, with the tensors of `source`; in evaluation mode.

    Errors: `KeyMismatch` for anything missing, unexpected or of another shape; `CorruptFile`.
    """
    expected = shapes_of(network.state_dict())
    differences(source, expected).require_none(source.weights.path)
    tensors = read_part(source, options, health)
    for name, tensor in tensors.items():
        if tensor.shape != expected.get(name, tensor.shape):  # a 1x1 convolution for a linear layer, or the reverse
            tensors[name] = tensor.reshape(expected[name])
    quantize_layers(network, options.quantized, compute_dtype=options.computing(source))
    network.load_state_dict(tensors, assign=True)
    return network.eval()


def differences(source: PartSource, expected: Shapes) -> Differences:
    """The differences between a part and a network's shapes, apart from trailing 1x1."""
    found = compare_shapes(expected, source.part.shapes(source.weights.tensors), same=same_but_for_trailing_ones)
    return replace(found, unexpected=tuple(sorted([*found.unexpected, *source.part.unexpected])))


def expected_shapes(checkpoint: Checkpoint, component: Component) -> Shapes | None:
    """Names and shapes of the network that a part is, from the network itself (R170-R172).

    `None` for a text encoder, whose network is built from the file, and for a part whose architecture is unknown.
    Errors: `ConfigError` for more layers than the file has tensors.
    """
    config, vae_config = checkpoint.identification.config, checkpoint.vae_config
    match component:
        case "unet" if config is not None:
            _require_layers(checkpoint, component, config.layers)
            return shapes_of(build_on_meta(lambda: UNet(config)).state_dict())
        case "vae" if vae_config is not None:
            _require_layers(checkpoint, component, vae_config.layers)
            return shapes_of(build_on_meta(lambda: AutoencoderKL(vae_config)).state_dict())
        case _:
            return None


def part_shapes(checkpoint: Checkpoint, component: Component, source: PartSource) -> Shapes:
    """The same; those of the file where it describes the network."""
    shapes = expected_shapes(checkpoint, component)
    return source.part.shapes(source.weights.tensors) if shapes is None else shapes


def _require_layers(checkpoint: Checkpoint, component: Component, layers: int) -> None:
    if (source := checkpoint.parts.get(component)) is not None:
        require_layers(source.weights.path, layers, len(source.weights.tensors))


def read_part(
    source: PartSource,
    options: LoadOptions,
    health: Health,
    *,
    use: Callable[[str], Use] = lambda _: None,
    only: Collection[str] | None = None,
) -> dict[str, AnyTensor]:
    """The part's tensors by our names. Each is read, checked, converted and copied before the next.

    use: when a tensor of ours is used, for the report. only: the tensors to read; `None` reads all. Errors:
    `CorruptFile`.
    """
    mappings = source.mappings
    if only is not None:
        wanted = {name.removesuffix(SCALE) + "weight" if name.endswith(SCALE) else name for name in only}
        mappings = {name: one for name, one in mappings.items() if not set(one.ours).isdisjoint(wanted)}
    dtype = stored_dtype(source) if options.dtype is None else options.dtype
    tensors: dict[str, AnyTensor] = {}
    for name, stored in source.weights.each(list(mappings)):
        pieces = mappings[name].split(stored)
        if options.validate:
            health.add(f"{source.label}{name}", stored, use=use(pieces[0][0]), target=dtype)
        for ours, piece in pieces:
            for made, tensor in _parameters(ours, piece, dtype, options):
                if only is None or made in only:
                    tensors[made] = tensor
    return tensors


SCALE = "weight_scale"
"""The last part of the name of a quantized layer's scales."""


def _parameters(
    name: str, piece: AnyTensor, dtype: torch.dtype, options: LoadOptions
) -> Iterator[tuple[str, AnyTensor]]:
    """What one of our tensors becomes: a parameter, or codes and scales."""
    layer, _, last = name.rpartition(".")
    scheme = options.quantized.get(layer) if last == "weight" else None
    if scheme is None:
        yield name, _converted(piece, dtype, options)
        return
    codes, scales = quantized(piece.reshape(len(piece), -1).to(options.device), scheme)
    yield name, codes
    yield f"{layer}.{SCALE}", scales


def build_on_meta(build: Callable[[], Network]) -> Network:
    """Builds a network on the meta device: its parameters have shapes and no memory."""
    with torch.device("meta"):
        return build()


def _converted(piece: AnyTensor, dtype: torch.dtype, options: LoadOptions) -> AnyTensor:
    """The tensor in the chosen types, layout and device; a copy, unless it may stay a view of the file."""
    layout = torch.channels_last if options.channels_last and piece.ndim == 4 else torch.contiguous_format
    keep = options.mmap and piece.is_contiguous()
    target = dtype if piece.is_floating_point() else None
    if target is not None and options.compute_dtype is not None and options.compute_dtype != dtype:
        piece, target = piece.to(dtype), options.compute_dtype
    return piece.to(device=options.device, dtype=target, copy=not keep, memory_format=layout)
