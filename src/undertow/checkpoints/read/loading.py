"""Fills a network that was built without memory, one tensor at a time, strictly."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from undertow.checkpoints.files.weights import AnyTensor, Weights
from undertow.checkpoints.health import Health, Use
from undertow.checkpoints.keymap.contents import Part
from undertow.errors import CheckpointError, KeyMismatch

Network = TypeVar("Network", bound=nn.Module)

PLAIN_TYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Types that networks compute in."""


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How tensors become parameters.

    dtype: `None` keeps the file's type. mmap: parameters stay views of the file's read-only mapping where type and
    device allow, which loads at once and shares memory between processes, as long as nobody changes the file.
    channels_last: convolutions in the memory layout that their libraries compute in. validate: look at every value on
    the way. attention: the kernel of a U-Net, see `attention.choose.kernel_named`.
    """

    dtype: torch.dtype | None = None
    device: torch.device | str | None = None
    mmap: bool = False
    channels_last: bool = False
    validate: bool = True
    attention: str = "auto"


def load_network(
    network: Network,
    weights: Weights,
    part: Part,
    options: LoadOptions,
    health: Health,
    names: Mapping[str, str] | None = None,
    label: str = "",
) -> Network:
    """`network`, which was built on the meta device, with the tensors of `part`; in evaluation mode.

    names: other tensors of the file to read in place of the part's (averaged weights). label: before their names in the
    report. Errors: `KeyMismatch` for anything missing, left over or of another shape; `CorruptFile`.
    """
    expected = network.state_dict()
    check_part(weights, part, {name: tuple(tensor.shape) for name, tensor in expected.items()})
    tensors = read_part(weights, part, options, health, names=names, label=label)
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:  # a 1x1 convolution for a linear layer, or the reverse
            tensors[name] = tensor.reshape(expected[name].shape)
    network.load_state_dict(tensors, assign=True)
    return network.eval()


def check_part(weights: Weights, part: Part, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Every tensor present, none left over, shapes equal but for trailing 1x1. Errors: `KeyMismatch`."""
    found = part.shapes(weights.tensors)
    reshaped = [
        f"{name} {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and without_trailing_ones(found[name]) != without_trailing_ones(shape)
    ]
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted([*(found.keys() - expected.keys()), *part.unexpected])
    if missing or unexpected or reshaped:
        raise KeyMismatch(weights.path, missing, unexpected, reshaped)


def read_part(
    weights: Weights,
    part: Part,
    options: LoadOptions,
    health: Health,
    *,
    use: Callable[[str], Use] = lambda _: None,
    skip: Collection[str] = (),
    names: Mapping[str, str] | None = None,
    label: str = "",
) -> dict[str, AnyTensor]:
    """The part's tensors by our names, each read, looked at, converted and copied before the next.

    use: when a tensor of ours is read, and label: what precedes its name, for the report. skip: names of ours to leave
    out. Errors: `CorruptFile`.
    """
    sources = {(name if names is None else names[name]): mapping for name, mapping in part.mappings.items()}
    names_to_read = [name for name, mapping in sources.items() if not set(mapping.ours) <= set(skip)]
    dtype = common_dtype(weights, names_to_read) if options.dtype is None else options.dtype
    tensors: dict[str, AnyTensor] = {}
    for name, stored in weights.each(names_to_read):
        pieces = sources[name].split(stored)
        if options.validate:
            health.add(f"{label}{name}", stored, use=use(pieces[0][0]), target=dtype)
        for ours, piece in pieces:
            tensors[ours] = _own(piece, dtype, options)
    return tensors


def common_dtype(weights: Weights, names: Collection[str]) -> torch.dtype:
    """The type that most values have, among those that networks compute in: 8-bit floats become float16, float64
    becomes float32."""
    counts: dict[torch.dtype, int] = {}
    for name in names:
        info = weights.tensors[name]
        if info.dtype.is_floating_point:
            counts[info.dtype] = counts.get(info.dtype, 0) + info.count
    if not counts:
        raise CheckpointError(weights.path, "no floating-point weights", "quantized integers are not supported")
    most = max(counts, key=lambda dtype: counts[dtype])
    if most in PLAIN_TYPES:
        return most
    return torch.float32 if most == torch.float64 else torch.float16


def build_on_meta(build: Callable[[], Network]) -> Network:
    """A network whose parameters have shapes and no memory."""
    with torch.device("meta"):
        return build()


def without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a 1x1 convolution as that of the linear layer with the same numbers."""
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape


def _own(piece: AnyTensor, dtype: torch.dtype, options: LoadOptions) -> AnyTensor:
    """A contiguous tensor of the names_to_read type and device; a copy, unless it may stay a view of the file."""
    keep = options.mmap and piece.is_contiguous()
    kind = dtype if piece.is_floating_point() else None
    layout = torch.channels_last if options.channels_last and piece.ndim == 4 else torch.contiguous_format
    return piece.to(device=options.device, dtype=kind, copy=not keep, memory_format=layout)
