"""A picture as a list of passes, each a sampler's run from a start along a grid: so is every kind of request."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.adapters.kind import RowAdapters
from undertow.adapters.manager import TiledAdapters
from undertow.diffusion.guidance import Guidance
from undertow.engine.chosen_sampler import ChosenSampler
from undertow.engine.conditioning import Branches
from undertow.engine.evaluation import Network
from undertow.engine.layout import Layout
from undertow.engine.parts import HighResolution, StepForecast
from undertow.known_names import StartNoise
from undertow.unet.free_u import FreeU

Latents = Float[Tensor, "1 channels height width"]
UpscaledLatents = Float[Tensor, "1 channels rows columns"]
Extra = Float[Tensor, "1 extra_channels height width"]
"""What some models read beside the latents, for their U-Net's first convolution."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FromNoise:
    """Nothing but noise. given: standard normal latents in place of the seeds', a row for each picture. size: of the
    noise."""

    given: Float[Tensor, "count channels height width"] | None = None
    size: StartNoise = "variance"


@dataclass(frozen=True, kw_only=True, eq=False)
class FromPicture:
    """A picture's latents with noise over them. given: as in `FromNoise`."""

    latents: Latents
    given: Float[Tensor, "count channels height width"] | None = None


@dataclass(frozen=True, kw_only=True)
class Upscaled:
    """The pass before, finished and enlarged, with noise over it."""

    how: HighResolution


@dataclass(frozen=True)
class Continue:
    """Where the pass before stopped, noise and all."""


Start = FromNoise | FromPicture | Upscaled | Continue


@dataclass(frozen=True, kw_only=True, eq=False)
class InpaintMask:
    """What a mask keeps of a picture: its latents, and the share of each cell that is drawn anew."""

    latents: Latents
    mask: Float[Tensor, "1 1 height width"]

    def over(self, x: Latents, instead: Latents) -> Latents:
        """`x` where the mask is white, `instead` where it is black."""
        mask = self.mask.to(x)
        return mask * x + (1 - mask) * instead.to(x)


@dataclass(frozen=True, kw_only=True, eq=False)
class Composition:
    """How the estimates of several prompts become one. masks: of the regions, weighted."""

    masks: tuple[Float[Tensor, "1 1 height width"], ...] = ()

    @cached_property
    def covered(self) -> bool:
        """Whether regions leave nothing of the picture, so that nobody need ask for the request's own prompt."""
        return bool(self.masks) and bool((torch.stack(self.masks).sum(0) > 0).all())

    def compose(self, texts: Branches, denoised: Sequence[Latents], unconditional: Latents | None) -> Latents:
        """u + Σ w (c - u) over the prompts (arXiv:2206.01714, eq. 11), which guidance then scales; inside regions, the
        mean of theirs instead, by weight (latent couple; arXiv:2302.08113, eq. 5). denoised: of the prompts, which may
        be left out where regions cover the picture, then of the regions."""
        count = len(denoised) - len(texts.regions)
        prompts, regions = denoised[:count], denoised[count:]
        if not regions:
            return _combined(texts, prompts, unconditional)
        masks = [mask.to(regions[0]) for mask in self.masks]
        total = torch.stack(masks).sum(0)
        inside = sum((mask * part for mask, part in zip(masks, regions, strict=True)), torch.zeros_like(regions[0]))
        shared = inside / total.clamp(min=1e-6)
        return shared if self.covered else torch.where(total > 0, shared, _combined(texts, prompts, unconditional))


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapted:
    """The adapters of a pass: those that act outside regions, and those that act in each region."""

    everywhere: TiledAdapters
    regions: tuple[TiledAdapters, ...] = ()
    windows: int = 1

    def at(self, step: int, steps: int, *, region: int | None = None, conditional: bool) -> tuple[RowAdapters, ...]:
        """What acts in each window at a step, in a region or outside all. conditional: on that side of guidance."""
        tiled = self.everywhere if region is None else self.regions[region]
        return tuple(tiled.row(step, steps, window=window, conditional=conditional) for window in range(self.windows))


@dataclass(kw_only=True, eq=False)
class Pass:
    """sampler: what walks along sigmas, of which none are left when nothing may change. branches: of every step. extra:
    channels that the network reads beside the latents; without_image: the same for the branch that must not see the
    picture. adapters: that act on the network, if any. forecast: which steps are not computed."""

    network: Network
    start: Start
    sampler: ChosenSampler
    sigmas: Sequence[float]
    branches: Sequence[Branches]
    layout: Layout
    guidance: Guidance
    composition: Composition
    adapters: Adapted | None = None
    free_u: FreeU | None = None
    inpaint_mask: InpaintMask | None = None
    extra: Extra | None = None
    without_image: Extra | None = None
    forecast: StepForecast | None = None

    @property
    def steps(self) -> int:
        return max(0, len(self.sigmas) - 1)

    def step_at(self, sigma: float) -> int:
        """The step that a sampler is in. Samplers may evaluate twice in a step, also above its sigma."""
        return max(index for index, start in enumerate(self.sigmas[:-1]) if start >= sigma or index == 0)


def slerp(one: Latents, other: Latents, share: float) -> Latents:
    """The point on the great circle from `one` to `other` (Shoemake 1985), which keeps noise normal; straight where
    both point the same way."""
    cosine = torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0)
    if float(cosine.abs()) > 0.9995:
        return torch.lerp(one, other, share)
    angle = torch.acos(cosine)
    return (torch.sin((1 - share) * angle) * one + torch.sin(share * angle) * other) / torch.sin(angle)


def _combined(texts: Branches, prompts: Sequence[Latents], unconditional: Latents | None) -> Latents:
    """One prompt's estimate, or that of several with their weights."""
    if not texts.composed:
        return prompts[0]
    assert unconditional is not None  # every composition comes with it
    parts = zip(texts.conditional, prompts, strict=True)
    return unconditional + sum(
        (weight * (part - unconditional) for (_, weight), part in parts), torch.zeros_like(unconditional)
    )
