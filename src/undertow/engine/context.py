"""One prediction of noise, spelled out: the record that source document 000 calls PredictionContext."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from undertow.diffusion.guidance import ClassifierFree
from undertow.errors import InvalidInput
from undertow.shapes import Latents
from undertow.unet.conditioning import Conditioning, concatenate


class PreparedInputs(TypedDict):
    """The arguments of one forward, `unet(**context.prepare_inputs())`: a row for every guidance branch and picture."""

    latents: Latents
    timesteps: Float[Tensor, "rows"]
    conditioning: Conditioning


@dataclass(frozen=True, kw_only=True)
class PredictionContext:
    """Latents at a timestep with all that steers their prediction.

    latents [batch, channels, height, width], as the network expects them (scaled by c_in). timestep: one number, or
    one per row. text_embeddings, negative_embeddings [batch or 1, tokens, dim]; token counts may differ (trap T8).
    pooled, negative_pooled, time_ids: SDXL's. At guidance_scale 1, or without negative_embeddings, no unconditional
    row is computed. control_hints, adapter_scales: by adapter name. Errors: `InvalidInput`.
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
    adapter_scales: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, given in (("control_hints", self.control_hints), ("adapter_scales", self.adapter_scales)):
            if given:
                raise InvalidInput(name, sorted(given), "names of loaded adapters", "this model has none loaded")
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
        branches = [self._branch(branch) for branch in self.guidance.branches]
        timesteps = torch.as_tensor(self.timestep, dtype=torch.float32, device=self.latents.device)
        return PreparedInputs(
            latents=self.latents.repeat(len(branches), 1, 1, 1),
            timesteps=timesteps.expand(len(self.latents)).repeat(len(branches)),
            conditioning=concatenate(branches),
        )

    def apply_guidance(self, predictions: Float[Tensor, "rows channels height width"]) -> Latents:
        """The guided prediction from the predictions of `prepare_inputs`' rows."""
        return self.guidance.combine(predictions.chunk(len(self.guidance.branches)))

    def _branch(self, branch: str) -> Conditioning:
        conditional = branch == "conditional" or self.negative_embeddings is None
        context = self.text_embeddings if conditional else self.negative_embeddings
        pooled = self.pooled if conditional else self.negative_pooled
        rows = len(self.latents)
        return Conditioning(
            context=_rows("text_embeddings" if conditional else "negative_embeddings", context, rows),
            pooled=_rows("pooled", pooled, rows),
            time_ids=_rows("time_ids", self.time_ids, rows),
        )


def predict_noise(
    unet: Callable[[Tensor, Tensor, Conditioning], Tensor], contexts: Sequence[PredictionContext]
) -> list[Float[Tensor, "..."]]:
    """The guided prediction of every context, all in one forward.

    Errors: `InvalidInput` when latents of different sizes are given: they cannot share a batch.
    """
    if not contexts:
        return []
    sizes = {tuple(context.latents.shape[1:]) for context in contexts}
    if len(sizes) > 1:
        raise InvalidInput("latents", sorted(sizes), "one size for all contexts", "predict each size by itself")
    inputs = [context.prepare_inputs() for context in contexts]
    predictions = unet(
        torch.cat([prepared["latents"] for prepared in inputs]),
        torch.cat([prepared["timesteps"] for prepared in inputs]),
        concatenate([prepared["conditioning"] for prepared in inputs]),
    ).split([len(prepared["latents"]) for prepared in inputs])
    return [context.apply_guidance(rows) for context, rows in zip(contexts, predictions, strict=True)]


def _rows(name: str, tensor: Tensor | None, rows: int) -> Tensor | None:
    """One row for every picture: given so, or repeated from a single one."""
    if tensor is None or len(tensor) == rows:
        return tensor
    if len(tensor) != 1:
        raise InvalidInput(name, f"{len(tensor)} rows", f"1 row or {rows}, one for each picture")
    return tensor.expand(rows, *tensor.shape[1:])
