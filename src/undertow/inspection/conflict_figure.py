"""Adapters beside each other, block by block: how large each one's changes are, and how alike those of each two."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.adapters.lora.updates import ScaledUpdates
from undertow.adapters.stacking.overlap import Delta, delta, energy, inner
from undertow.adapters.stacking.summary import AdapterSummary
from undertow.checkpoints.files.atomic import atomic_write
from undertow.errors import InvalidInput
from undertow.extras import optional_package
from undertow.unet.unet import UNet

NOWHERE = float("nan")
"""A block in which an adapter does not act."""

MOST_PAIRS = 10
"""Pairs of adapters that a figure shows, those of the highest priority."""


@dataclass(frozen=True, kw_only=True)
class BlockMap:
    """A number for every block and column, NaN where there is none. blocks: in the order of the network."""

    title: str
    blocks: tuple[str, ...]
    columns: tuple[str, ...]
    values: Float[Tensor, "blocks columns"]


def relative_sizes(summaries: Sequence[AdapterSummary], unet: UNet) -> BlockMap:
    """`‖ΔW‖ / ‖W‖` of every adapter's changes at its scale, over all layers of a block."""
    active = [scaled for summary in summaries if (scaled := summary.scaled) is not None]
    weights: dict[str, float] = defaultdict(float)
    changed: dict[tuple[str, str], float] = defaultdict(float)
    for layer, weight in _weights(unet).items():
        weights[block_of(layer)] += float(weight.float().square().sum())
        for scaled in active:
            change, gain = _change(scaled, layer, weight)
            if change is not None:
                changed[block_of(layer), scaled.layers.title] += gain**2 * energy(change)
    sizes = {(block, name): (energy / weights[block]) ** 0.5 for (block, name), energy in changed.items()}
    return _map("size of the change, ‖ΔW‖ / ‖W‖", unet, [scaled.layers.title for scaled in active], sizes)


def pairwise_cosines(summaries: Sequence[AdapterSummary], unet: UNet) -> BlockMap:
    """Of the angle between the changes of each two adapters, over the layers of a block that both change. Pairs that
    share no layer have no column."""
    active = [scaled for summary in summaries if (scaled := summary.scaled) is not None]
    sums: dict[tuple[str, str], list[float]] = {}
    for layer, weight in _weights(unet).items():
        changes = [(scaled.layers.title, *_change(scaled, layer, weight)) for scaled in active]
        here = [(name, change, gain, energy(change)) for name, change, gain in changes if change is not None]
        for (one, change, gain, length), (other, its_change, its_gain, its_length) in combinations(here, 2):
            total = sums.setdefault((block_of(layer), f"{one} · {other}"), [0.0, 0.0, 0.0])
            total[0] += gain * its_gain * inner(change, its_change)
            total[1] += gain**2 * length
            total[2] += its_gain**2 * its_length
    cosines = {key: both / (one * other) ** 0.5 for key, (both, one, other) in sums.items() if one * other > 0}
    names = [f"{one.layers.title} · {other.layers.title}" for one, other in combinations(active, 2)]
    shared = [name for name in names if any(pair == name for _, pair in cosines)]
    return _map("cosine of two changes", unet, shared[:MOST_PAIRS], cosines)


def save_figure(sizes: BlockMap, cosines: BlockMap, path: Path, title: str) -> None:
    """Both maps side by side, blocks in which nothing acts left out. Errors: `MissingDependency`; `InvalidInput` when
    nothing acts anywhere."""
    with optional_package("matplotlib", "viz"):
        from matplotlib.colors import PowerNorm  # noqa: PLC0415  an extra
        from matplotlib.figure import Figure  # noqa: PLC0415  it needs no global state of pyplot
    used = [index for index, row in enumerate(sizes.values) if not row.isnan().all()]
    if not used:
        raise InvalidInput("adapters", "without changes of the U-Net's layers", "a LoRA among them for the figure")
    maps = [sizes, cosines] if cosines.columns else [sizes]
    widths = [max(1, len(one.columns)) for one in maps]
    figure = Figure(figsize=(3.4 + 1.25 * sum(widths), 2.2 + 0.27 * len(used)), layout="constrained")
    figure.suptitle(f"{title} (gray: changes nothing)", fontsize=11)
    axes = figure.subplots(1, len(maps), squeeze=False, sharey=True, width_ratios=widths)[0]
    for axis, one in zip(axes, maps, strict=True):
        values = one.values[used]
        signed = one is cosines
        largest = float(values.nan_to_num().max())
        # Adapters differ by factors: a root brings small changes into sight.
        scale = {"vmin": -1, "vmax": 1} if signed else {"norm": PowerNorm(0.5, vmin=0, vmax=largest)}
        image = axis.imshow(values.numpy(), aspect="auto", cmap="RdBu_r" if signed else "viridis", **scale)
        axis.set_title(one.title, fontsize=9)
        axis.set_xticks(range(len(one.columns)), one.columns, rotation=30, ha="right", fontsize=8)
        axis.set_yticks(range(len(used)), [one.blocks[index] for index in used], fontsize=8)
        axis.set_facecolor("0.93")
        for row, column in values.isnan().logical_not().nonzero().tolist():
            number = float(values[row, column])
            pale = abs(number) < 0.6 if signed else number > 0.4 * largest
            text = f"{number:+.2f}" if signed else f"{number:.1%}"
            axis.text(column, row, text, ha="center", va="center", fontsize=7, color="black" if pale else "white")
        figure.colorbar(image, ax=axis, shrink=0.6)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as draft:
        figure.savefig(draft, dpi=110)


def block_of(layer: str) -> str:
    """The attention or ResBlock that a layer belongs to, and the layer itself outside of blocks."""
    parts = layer.split(".")
    return ".".join(parts[: {"down_blocks": 4, "up_blocks": 4, "mid_block": 3}.get(parts[0], 1)])


def _weights(unet: UNet) -> Mapping[str, Tensor]:
    """By layer."""
    named = ((name.removesuffix(".weight"), tensor.detach()) for name, tensor in unet.named_parameters())
    return {name: tensor for name, tensor in named if not name.endswith(".bias")}


def _change(scaled: ScaledUpdates, layer: str, weight: Tensor) -> tuple[Delta | None, float]:
    """What an adapter changes in a layer, and at which gain; a whole matrix where that depends on the weight."""
    update, gain = scaled.layers.updates.get(layer), scaled.layers.gain(layer, scaled.gain)
    if update is None or gain == 0:
        return None, gain
    change = delta(update)
    if change is None and not update.additive:
        change = update.on(weight.device).change(weight).flatten(1).cpu()
    return change, gain


def _map(title: str, unet: UNet, columns: Sequence[str], values: Mapping[tuple[str, str], float]) -> BlockMap:
    blocks = unet.config.layer_names()
    rows = [[values.get((block, column), NOWHERE) for column in columns] for block in blocks]
    tensor = torch.tensor(rows).reshape(len(blocks), len(columns))
    return BlockMap(title=title, blocks=tuple(blocks), columns=tuple(columns), values=tensor)
