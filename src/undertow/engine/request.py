"""What a user asks for, and what comes back."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from undertow.errors import InvalidInput

MAX_SEED = 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """A picture to make from text.

    size: (height, width) in pixels, the model's own when `None`. Picture k of `count` has seed + k and equals the one
    made alone with that seed. sampler, schedule: names from `undertow.sampling` and `undertow.diffusion.grids`.
    dialect: how weights are written in prompts: plain, a1111, comfy or compel. clip_skip: the text layer to read,
    counted from the end as A1111 does (1 is the last), `None` as the model was trained. original_size, crop,
    target_size: SDXL's micro-conditioning, (height, width), (top, left), (height, width); the size itself when `None`.
    timestep_map: "interpolated" as diffusers and A1111, "nearest" as ComfyUI (trap T19). Errors: `InvalidInput`.
    """

    prompt: str
    negative_prompt: str = ""
    steps: int = 20
    guidance_scale: float = 5.0
    seed: int = 0
    count: int = 1
    size: tuple[int, int] | None = None
    sampler: str = "dpmpp_2m"
    schedule: str = "karras"
    dialect: str = "a1111"
    clip_skip: int | None = None
    original_size: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)
    target_size: tuple[int, int] | None = None
    timestep_map: str = "interpolated"

    def __post_init__(self) -> None:
        for name in ("prompt", "negative_prompt"):
            if not isinstance(getattr(self, name), str):
                raise InvalidInput(name, repr(getattr(self, name)), "text; it may be empty")
        for name in ("steps", "count"):
            if getattr(self, name) < 1:
                raise InvalidInput(name, getattr(self, name), "at least 1")
        if not 0 <= self.seed <= MAX_SEED - self.count + 1:
            raise InvalidInput("seed", self.seed, f"a whole number from 0 to 2^64 - {self.count}")
        if not math.isfinite(self.guidance_scale):
            raise InvalidInput("guidance_scale", self.guidance_scale, "a finite number", "1 turns guidance off")
        if self.clip_skip is not None and self.clip_skip < 1:
            raise InvalidInput("clip_skip", self.clip_skip, "1 (the last layer) or more")

    @property
    def seeds(self) -> list[int]:
        return [self.seed + k for k in range(self.count)]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, json: Mapping[str, Any]) -> "GenerationRequest":
        """The request that `to_json` wrote. Errors: `InvalidInput` for unknown or missing fields."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(json.keys() - known)
        if unknown or "prompt" not in json:
            raise InvalidInput("request", unknown or "without a prompt", f"the fields {', '.join(sorted(known))}")
        values: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in json.items()}
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was done for one request, so that it can be understood and repeated.

    decisions: what the engine chose by itself and why. seconds: time by stage. debug: what the watches noted.
    """

    request: GenerationRequest
    model: str
    size: tuple[int, int]
    sigmas: tuple[float, ...]
    seconds: dict[str, float]
    decisions: tuple[str, ...] = ()
    debug: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GenerationResult:
    """Pictures, the latents they were decoded from (unscaled, as the network sees them), and the report."""

    images: list[Image.Image]
    latents: Float[Tensor, "count channels height width"]
    report: Report = field(repr=False)
