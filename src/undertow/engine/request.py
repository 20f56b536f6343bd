"""What a user asks for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from PIL import Image

from undertow.adapters.adapter import Adapter, as_adapters
from undertow.adapters.stack import AdapterStack
from undertow.doors import shown
from undertow.engine.parts import HighResolution, Region, Share, StepForecast, Views
from undertow.errors import InvalidInput
from undertow.guidance_options.steps import require_strength
from undertow.known_names import TimestepMap, require_dialect, require_sampler, require_schedule, split_guidance
from undertow.limits import COUNT, PARTS, STEPS
from undertow.pictures.fields import ImageField
from undertow.pictures.files import require_readable, require_same
from undertow.prompt_text import require_prompt
from undertow.records import Finite, Record, read_by, require_fields
from undertow.step_counts import kept_steps, require_grid

MAX_SEED = 2**64 - 1

PICTURES = ("image", "mask", "depth")
"""Fields that hold one picture each."""

MODEL_SAMPLER = "model"
"""In place of a sampler's name: the one that the model's folder names."""

GROUPS = {
    "prompt": "What to draw",
    "steps": "How to draw it",
    "image": "Image",
    "size": "Layout",
    "adapters": "Adapters",
}
"""By its first field, what a group of fields is about."""

StrengthConvention = Literal["diffusers", "comfy", "a1111"]
RegionsBy = Literal["estimates", "attention"]
Axes = Literal["none", "x", "y", "both"]
NoiseConvention = Literal["variance", "comfy"]
Seed = Annotated[int, Ge(0), Le(MAX_SEED)]
Height = int
Width = int


def as_square(given: Any) -> Any:
    """One number for both sides. Errors: `InvalidInput` for text, and for another number of numbers."""
    if isinstance(given, int):
        return (given, given)
    if isinstance(given, str) or (isinstance(given, Sequence) and len(given) != 2):
        expected = "a pair of height and width in pixels, such as (512, 768)"
        raise InvalidInput("size", shown(given), expected, "one number is both")
    return given


def as_regions(given: Any) -> Any:
    """One region for several."""
    return (given,) if isinstance(given, Region) else given


@dataclass(frozen=True, kw_only=True)
class GenerationRequest(Record):
    """A picture to make. Picture k of `count` has seed + k and equals the one made alone with that seed. Errors:
    `InvalidInput`."""

    # What to draw
    prompt: str
    """What to draw; may be empty. In the dialect "a1111", (like this:1.2) weights words."""
    negative_prompt: str = ""
    """What not to draw."""
    dialect: str = "a1111"
    """How weights are written in prompts: plain, a1111, comfy or compel."""
    clip_skip: Annotated[int, Ge(1)] | None = None
    """Layer of the text encoder to read, counted from the end: 1 is the last (A1111's "Clip skip"). `None` reads the
    one that the model was trained with."""
    seed: Seed = 0
    """Seed of the first picture; each further picture adds 1."""
    count: Annotated[int, Ge(1)] = 1
    """Number of pictures; those that share a batch are finished together."""
    variation_seed: Seed | None = None
    """Seed of another noise, towards which `variation_strength` moves; each further picture adds 1."""
    variation_strength: Share = 0.0
    """How far to move from the seed's noise towards that of another seed, from 0 to 1."""

    # How to draw it
    steps: Annotated[int, Ge(1)] = 20
    """Number of sampling steps."""
    sampler: str = MODEL_SAMPLER
    """Name of the sampling algorithm; `undertow samplers` lists them. "model" draws as the scheduler of the model's own
    folder does, and with dpmpp_2m where there is none."""
    sampler_options: Mapping[str, float] = field(default_factory=dict)
    """Options of the sampling algorithm by name. For example {"eta": 0.5}."""
    schedule: str | None = None
    """Grid of noise levels; `undertow samplers --schedules` lists them. When `None`, the one of the model's own
    sampler, or karras."""
    sigmas: tuple[float, ...] | None = None
    """Noise levels to use in place of schedule and steps."""
    discard_penultimate: bool | None = None
    """Whether to leave out the last noise level above 0. When `None`, for the samplers for which ComfyUI and A1111
    do."""
    timestep_map: TimestepMap = "interpolated"
    """How a noise level becomes a timestep: "interpolated" as in diffusers and A1111, "nearest" as in ComfyUI."""
    noise_convention: NoiseConvention = "variance"
    """How large pure noise is: "variance" gives the network's input the variance it was trained with, "comfy" is
    ComfyUI's. That is sigma times noise below the highest level, and a first level of 4518.76 with zero terminal
    SNR."""
    forecast_steps: StepForecast | None = None
    """Steps whose estimate is forecast from those of earlier ones; approximate."""
    refiner_switch: Share = 0.8
    """Share of the noise levels that the base model draws before the refiner takes over."""
    guidance_scale: Finite = 5.0
    """How closely to follow the prompt; 1 turns guidance off."""
    guidance_method: str = "cfg"
    """Guidance methods and their options, for example 'cfg+pag(scale=2,end=0.5)' or 'apg+rescale'."""
    image_guidance_scale: Finite = 1.5
    """How closely an InstructPix2Pix model keeps to the image."""

    # Image
    image: ImageField = None
    """Picture to start from, or to edit, depending on the model: image to image, inpainting with a mask,
    InstructPix2Pix."""
    strength: Share = 0.8
    """How much of the image may change, from 0 to 1."""
    strength_convention: StrengthConvention = "diffusers"
    """How the strength is counted in steps."""
    mask: ImageField = None
    """Mask of the same size as the image: white is drawn anew, black is kept, gray mixes."""
    paste: bool = True
    """Whether what the mask keeps is put back pixel by pixel."""
    depth: ImageField = None
    """Depth map for models that read one; near is white."""

    # Layout
    size: Annotated[tuple[Height, Width], read_by(as_square)] | None = None
    """Size of the picture in pixels. A pair of height and width, or one number for both; when `None`, the image's if
    there is one, else the model's own."""
    high_resolution: HighResolution | None = None
    """A second pass over the enlarged picture."""
    views: Views | None = None
    """Overlapping windows, for pictures larger than the model was trained at."""
    regions: Annotated[tuple[Region, ...], read_by(as_regions)] = ()
    """Prompts for parts of the picture, each with a box: left, top, right and bottom as fractions of the picture."""
    regions_by: RegionsBy = "estimates"
    """How regions are drawn: "estimates" evaluates the network once for each and joins the results (latent couple),
    "attention" once for all, and lets each part attend to its own prompt only."""
    seamless: Axes = "none"
    """Axes along which opposite edges continue each other."""
    original_size: tuple[Height, Width] | None = None
    """SDXL's micro-conditioning: height and width of the original picture; the size itself when `None`."""
    crop: tuple[int, int] = (0, 0)
    """SDXL's micro-conditioning: top and left of the crop."""
    target_size: tuple[Height, Width] | None = None
    """SDXL's micro-conditioning: height and width of the target; the size itself when `None`."""

    # Adapters
    adapters: Annotated[tuple[Adapter, ...] | AdapterStack, read_by(as_adapters)] = ()
    """Adapters of the base model: all as given, or a stack that decides which of them act. A single one, and a source
    for one, are taken too. Those of a region act there in addition."""
    embeddings: tuple[str, ...] = ()
    """Textual inversions that the prompts use, by name. The request is refused where the model knows none of such a
    name; `UNetService.add_embedding` reads them from files."""

    def __post_init__(self) -> None:
        for name in ("prompt", "negative_prompt"):
            require_prompt(name, getattr(self, name))
        for name, seed in (("seed", self.seed), ("variation_seed", self.variation_seed)):
            if seed is not None and not 0 <= seed <= MAX_SEED - self.count + 1:
                raise InvalidInput(name, seed, f"a whole number from 0 to 2^64 - {self.count}")
        require_fields(self)
        STEPS.require("steps", self.steps if self.sigmas is None else len(self.sigmas))
        if self.sigmas is not None:
            require_grid(self.sigmas)
        for name in ("guidance_scale", "image_guidance_scale"):
            require_strength(name, getattr(self, name))
        COUNT.require("count", self.count)
        for name in ("regions", "adapters"):
            PARTS.require(name, len(getattr(self, name)), f"{len(getattr(self, name)):,} {name}")
        for name, least in (("original_size", 1), ("crop", 0), ("target_size", 1)):
            pair = getattr(self, name)
            if pair is not None and min(pair) < least:
                raise InvalidInput(name, pair, f"a pair of whole numbers of at least {least}")
        if self.variation_strength and self.variation_seed is None:
            raise InvalidInput("variation_strength", self.variation_strength, "0 without a variation_seed", "give both")
        self._check_names()
        self._check_pictures()

    @property
    def seeds(self) -> list[int]:
        """Of each picture."""
        return [self.seed + k for k in range(self.count)]

    @property
    def step_count(self) -> int:
        """Of its grid: those between its `sigmas`, where these take the place of `steps`."""
        return self.steps if self.sigmas is None else len(self.sigmas) - 1

    @property
    def drawn_steps(self) -> int:
        """Of its first pass, which begins behind a part of the levels where it starts from an image."""
        if self.image is None:
            return self.step_count
        return min(self.step_count, kept_steps(self.step_count, self.strength, self.strength_convention))

    @property
    def all_adapters(self) -> tuple[Adapter, ...]:
        """Its own and those of its regions."""
        return (*self.adapters, *(one for region in self.regions for one in region.adapters))

    def variation(self, index: int) -> tuple[int, float] | None:
        """The seed of the other noise of picture `index`, and how far its own moves towards it."""
        if self.variation_seed is None or not self.variation_strength:
            return None
        return self.variation_seed + index, self.variation_strength

    @classmethod
    def from_json(cls, json: Mapping[str, Any], **pictures: Image.Image | None) -> "GenerationRequest":
        """The request that `to_json` wrote. pictures: those of the same names again, for a description that has only
        their size and hash, or files that have moved.

        Errors: `InvalidInput` for unknown or missing fields, for values that do not fit, and for a picture that is
        missing or another one.
        """
        given = {name: picture for name, picture in pictures.items() if picture is not None}
        for name, picture in given.items():
            described = json.get(name)
            if described is None:
                raise InvalidInput(name, "given", "none, because the request was made without one")
            if isinstance(described, Mapping):
                require_same(name, picture, described)
        return super().from_json({**json, **given} if given else json)

    def _check_names(self) -> None:
        """Whether there is what the request names. What of it suits a model is known when that is there."""
        require_dialect(self.dialect)
        if self.sampler != MODEL_SAMPLER:
            require_sampler(self.sampler)
        if self.schedule is not None:
            require_schedule(self.schedule)
        split_guidance(self.guidance_method)

    def _check_pictures(self) -> None:
        for name in PICTURES:
            picture = getattr(self, name)
            if picture is not None and not isinstance(picture, Image.Image):
                raise InvalidInput(name, type(picture).__name__, "a PIL image", "open the file with PIL.Image.open")
            if picture is not None:
                require_readable(name, picture)
        if self.mask is None:
            return
        if self.image is None:
            raise InvalidInput("mask", "given", "nothing without an image", "give the image that it belongs to")
        if self.mask.size != self.image.size:
            raise InvalidInput(
                "mask",
                "{}x{}".format(*self.mask.size),
                "{}x{}, the image's size".format(*self.image.size),
                "white pixels are drawn anew, black ones are kept",
            )


def as_request(given: Any, **suggested: float) -> GenerationRequest:
    """A request as such, and a prompt for one. suggested: fields of a request of a prompt alone. Errors:
    `InvalidInput`."""
    if isinstance(given, GenerationRequest):
        return given
    if isinstance(given, str):
        return GenerationRequest.from_json({"prompt": given, **suggested})
    raise InvalidInput("request", shown(given), "a GenerationRequest, or a prompt")
