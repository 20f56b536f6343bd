"""The shape of everything that flows through a U-Net, stage by stage, without computing a number."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from undertow.errors import InvalidInput
from undertow.unet.conditioning import Conditioning
from undertow.unet.config import ClassLabels, TextTime, UNetConfig
from undertow.unet.unet import UNet

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class StageShape:
    """One layer of `UNetConfig.layer_names()`: what it received and returned.

    skip: "stores 3" when the output is the third skip connection, "takes 7" when the seventh was joined to the input.
    """

    name: str
    kind: str
    input: Shape
    output: Shape
    skip: str = ""


def trace_shapes(config: UNetConfig, *, batch: int = 1, size: tuple[int, int] | None = None) -> list[StageShape]:
    """Every layer's shapes in one forward of `batch` rows at `size` cells (height, width), the config's own by default.

    Runs on PyTorch's meta device: no weights, no numbers, a second even for SDXL. Errors: `InvalidInput`.
    """
    height, width = (config.sample_size, config.sample_size) if size is None else size
    if batch < 1 or height < 1 or width < 1:
        raise InvalidInput("batch and size", f"{batch}, {height}x{width}", "at least one row and one cell")
    with torch.device("meta"):
        unet = UNet(config).eval()
        latents = torch.empty(batch, config.in_channels, height, width)
        timesteps = torch.empty(batch)
        conditioning = _placeholder(config, batch)
    with torch.inference_mode(), _recording(unet) as stages:
        unet(latents, timesteps, conditioning)
    return _with_skips(config, stages)


@contextmanager
def _recording(unet: UNet) -> Generator[list[StageShape]]:
    stages: list[StageShape] = []

    def hook(name: str):
        def record(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            assert isinstance(inputs[0], Tensor)
            assert isinstance(output, Tensor)
            kind = type(module).__name__
            stages.append(StageShape(name=name, kind=kind, input=tuple(inputs[0].shape), output=tuple(output.shape)))

        return record

    handles = [unet.get_submodule(name).register_forward_hook(hook(name)) for name in unet.config.layer_names()]
    try:
        yield stages
    finally:
        for handle in handles:
            handle.remove()


def _with_skips(config: UNetConfig, stages: list[StageShape]) -> list[StageShape]:
    """Marks what the encoder stores (a ResBlock counts after its attention) and the decoder takes, in reverse."""
    encoder = [stage.name for stage in stages if stage.name == "conv_in" or stage.name.startswith("down_blocks.")]
    attended = {name.replace("attentions", "resnets") for name in encoder if ".attentions." in name}
    stored = [name for name in encoder if name not in attended]
    decoder = [stage.name for stage in stages if stage.name.startswith("up_blocks.") and ".resnets." in stage.name]
    notes = {name: f"stores {number}" for number, name in enumerate(stored, start=1)}
    notes |= {name: f"takes {len(stored) - number}" for number, name in enumerate(decoder)}
    assert len(stored) == len(decoder) == len(config.skip_shapes(1, 1))
    return [replace(stage, skip=notes.get(stage.name, "")) for stage in stages]


def _placeholder(config: UNetConfig, batch: int) -> Conditioning:
    context = None if config.context_dim is None else torch.empty(batch, 77, config.context_dim)
    match config.added:
        case TextTime(pooled_dim=pooled, ids=ids):
            return Conditioning(context=context, pooled=torch.empty(batch, pooled), time_ids=torch.empty(batch, ids))
        case ClassLabels():
            labels = torch.empty(batch, dtype=torch.long)
            return Conditioning(context=context, class_labels=labels)
        case None:
            return Conditioning(context=context)
