"""One evaluation of a picture's denoiser: rows for the branches of guidance and their windows, an estimate for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.adapters.kind import RowAdapters
from undertow.diffusion.denoiser import Preconditioning
from undertow.diffusion.guidance import Perturbation
from undertow.diffusion.paths import working
from undertow.encoders.reading import Reading
from undertow.engine.layout import Layout
from undertow.engine.rows import Origin, Row, Steps
from undertow.unet.conditioning import Conditioning
from undertow.unet.free_u import FreeU
from undertow.unet.unet import UNet


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A U-Net with the mathematics that it was trained with. clip: the guided estimate of x0 is clamped to
    [-clip, clip] (diffusers' `clip_sample`): right for pixels, wrong for latents."""

    unet: UNet
    preconditioning: Preconditioning
    clip: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class BranchInput:
    """What a network receives for one branch of guidance, or one prompt or region of it.

    name: in debug output. extra: channels beside the latents, for models that read a picture (inpainting, editing,
    depth). adapters: what acts in each window, if anything does. perturbation, observed: as in
    guidance's `Branch`. reading: what each token of the context says.
    """

    name: str
    conditioning: Conditioning
    extra: Float[Tensor, "1 channels height width"] | None = None
    adapters: tuple[RowAdapters, ...] = ()
    perturbation: Perturbation | None = None
    observed: tuple[str, ...] = ()
    reading: Reading | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class BranchOutput:
    """prediction: as the network gave it. denoised: the estimate of the clean latents that it means. observations: as
    in guidance's `Estimate`."""

    name: str
    prediction: Float[Tensor, "1 channels height width"]
    denoised: Float[Tensor, "1 channels height width"]
    observations: Mapping[str, Float[Tensor, "1 _height _width"]] = field(default_factory=dict)


def evaluate(
    network: Network,
    layout: Layout,
    x: Float[Tensor, "1 channels height width"],
    sigma: float,
    branches: Sequence[BranchInput],
    free_u: FreeU | None = None,
    origin: Origin | None = None,
) -> Steps[list[BranchOutput]]:
    """The output of each branch for `x` at `sigma`: one row for each of its windows, all in one batch. origin: of the
    rows, but for their branch and window."""
    level = torch.tensor([sigma], dtype=torch.float64)
    inputs, timestep = network.preconditioning.inputs(x, level)
    start = Origin() if origin is None else origin
    rows = [
        Row(
            origin=replace(start, branch=branch.name, window=window),
            unet=network.unet,
            latents=part,
            timestep=timestep,
            conditioning=branch.conditioning,
            adapters=branch.adapters[window] if branch.adapters else None,
            perturbation=branch.perturbation,
            free_u=free_u,
            observed=branch.observed,
            reading=branch.reading,
            layout=layout,
        )
        for branch in branches
        for window, part in enumerate(layout.split_tiles(_with_extra(inputs, branch.extra)))
    ]
    outcomes = yield rows
    windows = len(rows) // len(branches)
    found: list[BranchOutput] = []
    for index, branch in enumerate(branches):
        parts = outcomes[index * windows : (index + 1) * windows]
        prediction = layout.merge_tiles([working(part.prediction) for part in parts])
        denoised = network.preconditioning.denoised(prediction, x, level)
        observations = {name: parts[0].observations[name] for name in branch.observed}
        found.append(
            BranchOutput(name=branch.name, prediction=prediction, denoised=denoised, observations=observations)
        )
    return found


def _with_extra(inputs: Tensor, extra: Tensor | None) -> Tensor:
    return inputs if extra is None else torch.cat([inputs, extra.to(inputs)], dim=1)
