"""Pictures of a run: grids of samples and the loss over the steps, as PNG."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from undertow.checkpoints.files.atomic import atomic_write
from undertow.extras import optional_package
from undertow.training.log import StepRecord

GAP = 2
SHORTEST_SIDE = 640
"""Small pictures are enlarged by whole factors until a grid's shorter side is about this long."""


def grid(pixels: UInt8[Tensor, "count channels height width"], columns: int) -> UInt8[Tensor, "channels rows cols"]:
    """Pictures in rows of `columns`, dark gaps between them."""
    count, channels, height, width = pixels.shape
    rows = -(-count // columns)
    sheet = pixels.new_full((rows * columns, channels, height + GAP, width + GAP), 32)
    sheet[:count, :, GAP:, GAP:] = pixels
    joined = sheet.reshape(rows, columns, *sheet.shape[1:]).permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2)
    return F.pad(joined, (0, GAP, 0, GAP), value=32)


def save_grid(pixels: UInt8[Tensor, "count channels height width"], columns: int, path: Path) -> None:
    """Writes a grid as PNG, enlarged with sharp edges."""
    sheet = grid(pixels, columns)
    factor = max(1, SHORTEST_SIDE // min(sheet.shape[1:]))
    save_picture(sheet.repeat_interleave(factor, 1).repeat_interleave(factor, 2), path)


def save_picture(pixels: UInt8[Tensor, "channels height width"], path: Path) -> None:
    """Writes one gray or RGB picture; the format is that of the file's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    last = pixels.permute(1, 2, 0).contiguous()
    with atomic_write(path) as draft:
        Image.fromarray(last[..., 0].numpy() if last.shape[-1] == 1 else last.numpy()).save(draft)


def save_loss_plot(records: Sequence[StepRecord], path: Path) -> None:
    """Loss and gradient norm over the steps, both with their running mean. Errors: `MissingDependency`."""
    with optional_package("matplotlib", "train"):
        from matplotlib.figure import Figure  # noqa: PLC0415  an extra; `Figure` needs no global state of pyplot
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    steps = [record.step for record in records]
    axes = figure.subplots(1, 2)
    for axis, name in zip(axes, ("loss", "gradient_norm"), strict=True):
        values = torch.tensor([getattr(record, name) for record in records])
        axis.plot(steps, values, color="#9ec5e8", linewidth=0.8, label="each record")
        axis.plot(steps, _running_mean(values), color="#14507d", linewidth=1.6, label="running mean")
        scale = "log" if bool((values > 0).any()) else "linear"
        axis.set(xlabel="step", title=name.replace("_", " "), yscale=scale)
        axis.grid(alpha=0.3)
        axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as draft:
        figure.savefig(draft, dpi=110)


def _running_mean(values: Tensor) -> Tensor:
    """Mean over the last 2 % of the values, fewer at the start."""
    window = 1 + len(values) // 50
    sums = F.pad(values.double().cumsum(0), (1, 0))
    ends = torch.arange(1, len(values) + 1)
    starts = (ends - window).clamp(min=0)
    return (sums[ends] - sums[starts]) / (ends - starts)
