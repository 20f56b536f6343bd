"""One prediction of noise, spelled out: the record that source document 000 calls PredictionContext."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from undertow.adapters.adapter import Adapter
from undertow.adapters.manager import AdapterManager
from undertow.adapters.pictures import LatentGrid
from undertow.diffusion.guidance import ClassifierFree
from undertow.doors import checked_record
from undertow.engine.forward import forward
from undertow.engine.rows import Row
from undertow.errors import InvalidInput
from undertow.shapes import Latents
from undertow.unet.conditioning import Conditioning, concatenate
from undertow.unet.runner import EAGER, Runner
from undertow.unet.unet import UNet

PIXELS_PER_CELL = 8
"""Of Stable Diffusion's autoencoders."""


class PreparedInputs(TypedDict):
    """The arguments of one forward, `unet(**context.prepare_inputs())`: a row for every guidance branch and picture."""

    latents: Latents
    timesteps: Float[Tensor, "rows"]
    conditioning: Conditioning


@checked_record
@dataclass(frozen=True, kw_only=True)
class PredictionContext:
    """Latents at a timestep with all that steers their prediction.

    latents [batch, channels, height, width], as the network expects them (scaled by c_in). timestep: one number, or
    one per row. text_embeddings, negative_embeddings [batch or 1, tokens, dim]; token counts may differ (trap T8).
    pooled, negative_pooled, time_ids: SDXL's. At guidance_scale 1, or without negative_embeddings, no unconditional
    row is computed. adapters: that act; adapter_scales: scales of some, by name, in place of their own. control_hints:
    control maps in [0, 1], [1, 3, height, width] in pixels, by the name of their ControlNet or T2I-Adapter, in place of
    its image. Errors: `InvalidInput`.
    """

    latents: Latents
    timestep: float | Shaped[Tensor, "batch"]
    text_embeddings: Float[Tensor, "prompts tokens dim"]
    negative_embeddings: Float[Tensor, "negatives negative_tokens dim"] | None = None
    pooled: Float[Tensor, "pooled_rows pooled_dim"] | None = None
    negative_pooled: Float[Tensor, "negative_pooled_rows pooled_dim"] | None = None
    time_ids: Float[Tensor, "id_rows ids"] | None = None
    guidance_scale: float = 7.5
    control_hints: Mapping[str, Tensor] = field(default_factory=dict)
    adapters: tuple[Adapter, ...] = ()
    adapter_scales: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        titles = [adapter.title for adapter in self.adapters]
        for name, hint in self.control_hints.items():
            if name not in titles:
                raise InvalidInput("control_hints", repr(name), f"names of its adapters: {', '.join(titles) or 'none'}")
            _check_hint(name, hint)
        for name, scale in self.adapter_scales.items():
            if name not in titles:
                raise InvalidInput(
                    "adapter_scales", repr(name), f"names of its adapters: {', '.join(titles) or 'none'}"
                )
            if not math.isfinite(scale):
                raise InvalidInput(f"adapter_scales[{name!r}]", scale, "a finite number")
        if "unconditional" in self.guidance.branches and self.negative_embeddings is None:
            raise InvalidInput(
                "negative_embeddings",
                None,
                f"embeddings of the empty or negative prompt at guidance_scale {self.guidance_scale:g}",
                "give them, or use guidance_scale 1",
            )

    @property
    def guidance(self) -> ClassifierFree:
        return ClassifierFree(scale=self.guidance_scale)

    def prepare_inputs(self) -> PreparedInputs:
        """The rows of one forward: those of each guidance branch after the other."""
        branches = [self.branch(side) for side in self.guidance.branches]
        return PreparedInputs(
            latents=self.latents.repeat(len(branches), 1, 1, 1),
            timesteps=self.timesteps.repeat(len(branches)),
            conditioning=concatenate(branches),
        )

    @property
    def timesteps(self) -> Float[Tensor, "rows"]:
        """One for each of its latents."""
        return torch.as_tensor(self.timestep, dtype=torch.float32, device=self.latents.device).expand(len(self.latents))

    def apply_guidance(self, predictions: Float[Tensor, "rows channels height width"]) -> Latents:
        """The guided prediction from the predictions of `prepare_inputs`' rows."""
        return self.guidance.combine(predictions.chunk(len(self.guidance.branches)))

    @property
    def scaled_adapters(self) -> tuple[Adapter, ...]:
        """Its adapters at the scales of this call, which has no steps for a schedule to go along."""
        return tuple(
            replace(adapter, scale=self.adapter_scales.get(adapter.title, adapter.scales[0]), start=0.0, end=1.0)
            for adapter in self.adapters
        )

    def branch(self, side: str) -> Conditioning:
        """What the network receives on a side of guidance, a row for each of its latents."""
        conditional = side == "conditional" or self.negative_embeddings is None
        context = self.text_embeddings if conditional else self.negative_embeddings
        pooled = self.pooled if conditional else self.negative_pooled
        rows = len(self.latents)
        return Conditioning(
            context=_rows("text_embeddings" if conditional else "negative_embeddings", context, rows),
            pooled=_rows("pooled", pooled, rows),
            time_ids=_rows("time_ids", self.time_ids, rows),
        )


def predict_noise(
    unet: UNet,
    contexts: Sequence[PredictionContext],
    manager: AdapterManager | None = None,
    *,
    factor: int = PIXELS_PER_CELL,
    runner: Runner = EAGER,
) -> list[Float[Tensor, "..."]]:
    """The guided prediction of every context, all in one forward. manager: of the U-Net's adapters. factor: pixels to a
    cell of the latents, for adapters with pictures. runner: of the U-Net and of ControlNets.

    Errors: `InvalidInput` when latents of different sizes are given, or contexts with different merged adapters: they
    cannot share a batch.
    """
    if not contexts:
        return []
    sizes = {tuple(context.latents.shape[1:]) for context in contexts}
    if len(sizes) > 1:
        raise InvalidInput("latents", sorted(sizes), "one size for all contexts", "predict each size by itself")
    each = [_rows_of(unet, context, manager, factor) for context in contexts]
    rows = [row for group in each for row in group]
    if len({row.merged for row in rows}) > 1 or not (manager is None or manager.fits(rows)):
        raise InvalidInput(
            "adapters",
            "different ones that are merged, or more than there are slots",
            "contexts whose adapters can share a forward",
            "load the model with an adapter_capacity that has room, or predict them one by one",
        )
    try:
        outcomes = iter(forward(rows, manager, runner=runner))
    finally:
        if manager is not None:
            manager.unmerge()
    predictions = ([next(outcomes).prediction for _ in group] for group in each)
    return [context.apply_guidance(torch.cat(found)) for context, found in zip(contexts, predictions, strict=True)]


def _rows_of(unet: UNet, context: PredictionContext, manager: AdapterManager | None, factor: int) -> list[Row]:
    """The rows of one context, those of each guidance branch after the other, with what acts in them: adapters see on
    which side of guidance a row stands."""
    tiled = None
    if manager is not None and context.adapters:
        resolved = manager.resolve_each(context.scaled_adapters, hints=context.control_hints)
        height, width = context.latents.shape[2:]
        tiled = manager.tile(resolved, LatentGrid(cells=(height, width), factor=factor))
    timesteps = context.timesteps.split(1)
    return [
        Row(
            unet=unet,
            latents=latents,
            timestep=timestep,
            conditioning=conditioning,
            adapters=None if tiled is None else tiled.row(0, 1, conditional=side == "conditional"),
        )
        for side in context.guidance.branches
        for latents, timestep, conditioning in zip(
            context.latents.split(1), timesteps, context.branch(side).rows(), strict=True
        )
    ]


def _check_hint(name: str, hint: Tensor) -> None:
    if hint.ndim != 4 or hint.shape[:2] != (1, 3):
        raise InvalidInput(f"control_hints[{name!r}]", list(hint.shape), "[1, 3, height, width] in pixels")


def _rows(name: str, tensor: Tensor | None, rows: int) -> Tensor | None:
    """One row for every picture: given so, or repeated from a single one."""
    if tensor is None or len(tensor) == rows:
        return tensor
    if len(tensor) != 1:
        raise InvalidInput(name, f"{len(tensor)} rows", f"1 row or {rows}, one for each picture")
    return tensor.expand(rows, *tensor.shape[1:])
