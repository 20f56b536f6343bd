"""The options of each guidance method: frozen records that refuse what they cannot mean. Imports no torch."""

import math
from dataclasses import dataclass, field

from undertow.errors import InvalidInput
from undertow.guidance_options.rules import (
    Origin,
    Perturbation,
    Role,
    SeenSide,
    Space,
    require_blurred,
    require_space,
    require_word,
)
from undertow.guidance_options.steps import Scale, require_range, require_scale, require_steps
from undertow.known_names import PathName


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """Those of any method. role: what it does to the estimate."""

    role: Role = field(default="base", init=False, repr=False)

    def require_cells(self, height: int, width: int) -> None:
        """height, width: of the latents of a run. Errors: `InvalidInput` for fewer cells than it needs."""

    def require_run(self, steps: int, path: PathName | None) -> None:
        """What they mean for one run. path: of the network; `None` where it is not known. Errors: `InvalidInput` when
        they do not fit the steps or the path."""


@dataclass(frozen=True, kw_only=True)
class ClassifierFreeOptions(MethodOptions):
    """Of `guidance.ClassifierFree`."""

    scale: Scale

    def __post_init__(self):
        require_scale("guidance scale", self.scale)

    def require_run(self, steps: int, path: PathName | None) -> None:
        require_steps("guidance scale", self.scale, steps)


@dataclass(frozen=True, kw_only=True)
class TangentialOptions(ClassifierFreeOptions):
    """Of `guidance.Tangential`."""


@dataclass(frozen=True, kw_only=True)
class EmbeddedScaleOptions(ClassifierFreeOptions):
    """Of `guidance.EmbeddedScale`."""


@dataclass(frozen=True, kw_only=True)
class DualGuidanceOptions(ClassifierFreeOptions):
    """Of `guidance.DualGuidance`."""

    image_scale: Scale = 1.5

    def __post_init__(self):
        super().__post_init__()
        require_scale("image guidance scale", self.image_scale)

    def require_run(self, steps: int, path: PathName | None) -> None:
        super().require_run(steps, path)
        require_steps("image guidance scale", self.image_scale, steps)


@dataclass(frozen=True, kw_only=True)
class AdaptiveProjectedOptions(ClassifierFreeOptions):
    """Of `guidance.AdaptiveProjected`."""

    eta: float = 0.0
    norm_limit: float = 15.0
    momentum: float = -0.5
    origin: Origin = "conditional"
    space: Space = "denoised"

    def __post_init__(self):
        super().__post_init__()
        if not math.isfinite(self.eta):
            raise InvalidInput("eta", self.eta, "a finite number", "1 keeps the parallel part, 0 drops it")
        if not self.norm_limit > 0:
            raise InvalidInput("norm_limit", self.norm_limit, "a number above 0", "infinity does not limit")
        if not -1 < self.momentum < 1:
            raise InvalidInput("momentum", self.momentum, "a number between -1 and 1", "0 remembers nothing")
        require_word("origin", self.origin, Origin)
        require_word("space", self.space, Space)

    def require_run(self, steps: int, path: PathName | None) -> None:
        super().require_run(steps, path)
        require_space("APG", self.space, path)


@dataclass(frozen=True, kw_only=True)
class ZeroStarOptions(ClassifierFreeOptions):
    """Of `guidance.ZeroStar`."""

    zero_steps: int = 1

    def __post_init__(self):
        super().__post_init__()
        require_range("zero_steps", self.zero_steps, 0, math.inf)

    def require_run(self, steps: int, path: PathName | None) -> None:
        super().require_run(steps, path)
        if self.zero_steps >= steps:
            raise InvalidInput("zero_steps", self.zero_steps, f"fewer than the {steps} steps of the run")


@dataclass(frozen=True, kw_only=True)
class PerturbedAttentionOptions(MethodOptions):
    """Of `guidance.PerturbedAttention`."""

    scale: Scale
    layers: tuple[str, ...] = ("mid_block",)
    role: Role = field(default="term", init=False, repr=False)

    def __post_init__(self):
        require_scale("perturbed-attention scale", self.scale)
        Perturbation(kind="identity", layers=self.layers)  # refuses what it cannot mean

    def require_run(self, steps: int, path: PathName | None) -> None:
        require_steps("perturbed-attention scale", self.scale, steps)


@dataclass(frozen=True, kw_only=True)
class SmoothedEnergyOptions(MethodOptions):
    """Of `guidance.SmoothedEnergy`."""

    scale: Scale
    blur: float = math.inf
    layers: tuple[str, ...] = ("mid_block",)
    role: Role = field(default="term", init=False, repr=False)

    def __post_init__(self):
        require_scale("smoothed-energy scale", self.scale)
        Perturbation(kind="blurred", layers=self.layers, sigma=self.blur)  # refuses what it cannot mean

    def require_run(self, steps: int, path: PathName | None) -> None:
        require_steps("smoothed-energy scale", self.scale, steps)


@dataclass(frozen=True, kw_only=True)
class SelfAttentionOptions(MethodOptions):
    """Of `guidance.SelfAttention`."""

    scale: Scale
    side: SeenSide = "unconditional"
    blur: float = 1.0
    threshold: float = 1.0
    role: Role = field(default="term", init=False, repr=False)

    def __post_init__(self):
        require_scale("self-attention scale", self.scale)
        require_word("side", self.side, SeenSide)
        if not (math.isfinite(self.blur) and self.blur > 0):
            raise InvalidInput("blur", self.blur, "a finite number above 0, in cells")
        if not math.isfinite(self.threshold):
            raise InvalidInput("threshold", self.threshold, "a finite number", "attention is 1 on average")

    def require_run(self, steps: int, path: PathName | None) -> None:
        require_steps("self-attention scale", self.scale, steps)

    def require_cells(self, height: int, width: int) -> None:
        if self.scale != 0:
            require_blurred(height, width)


@dataclass(frozen=True, kw_only=True)
class RescaleOptions(MethodOptions):
    """Of `guidance.Rescale`."""

    amount: float
    space: Space = "prediction"
    role: Role = field(default="finish", init=False, repr=False)

    def __post_init__(self):
        require_range("guidance rescale", self.amount, 0, 1)
        require_word("space", self.space, Space)

    def require_run(self, steps: int, path: PathName | None) -> None:
        require_space("guidance rescale", self.space, path)


@dataclass(frozen=True, kw_only=True)
class DynamicThresholdOptions(MethodOptions):
    """Of `guidance.DynamicThreshold`."""

    percentile: float = 0.995
    largest: float = math.inf
    role: Role = field(default="finish", init=False, repr=False)

    def __post_init__(self):
        require_range("percentile", self.percentile, 0, 1)
        if not self.largest >= 1:
            raise InvalidInput("largest", self.largest, "a number, at least 1")


@dataclass(frozen=True, kw_only=True)
class MimicOptions(MethodOptions):
    """Of `guidance.Mimic`."""

    scale: Scale = 7.0
    percentile: float = 1.0
    amount: float = 1.0
    space: Space = "denoised"
    role: Role = field(default="finish", init=False, repr=False)

    def __post_init__(self):
        require_scale("mimic scale", self.scale)
        require_range("percentile", self.percentile, 0, 1)
        require_range("mimic amount", self.amount, 0, 1)
        require_word("space", self.space, Space)

    def require_run(self, steps: int, path: PathName | None) -> None:
        require_steps("mimic scale", self.scale, steps)
        require_space("mimic", self.space, path)
