"""What a user asks for."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from PIL import Image

from undertow.adapters.adapter import Adapter
from undertow.adapters.stack import AdapterStack
from undertow.engine.parts import HighResolution, Region, Views, part_from_json, require_strength
from undertow.errors import InvalidInput
from undertow.picture_files import describe_picture

MAX_SEED = 2**64 - 1

PICTURES = ("image", "mask", "depth")
"""Fields that hold pictures; a description of the request names them by size and hash."""

StrengthConvention = Literal["diffusers", "comfy", "a1111"]
RegionsBy = Literal["estimates", "attention"]
Axes = Literal["none", "x", "y", "both"]


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """A picture to make.

    size: (height, width) in pixels; when `None`, the image's if there is one, else the model's own. Picture k of
    `count` has seed + k and equals the one made alone with that seed. sampler, schedule: names from
    `undertow.sampling` and `undertow.diffusion.grids`; sampler_options: by name, for example {"eta": 0.5}; sigmas: a
    grid of one's own in place of schedule and steps; discard_penultimate: leave out the last level above 0, when `None`
    for the samplers for which ComfyUI and A1111 do. guidance_method: names and options of guidance, for example
    "cfg+pag(scale=2)", see `engine.guided`. dialect: how weights are written in prompts: plain, a1111, comfy or
    compel. clip_skip: the text layer to read, counted from the end as A1111 does (1 is the last), `None` as the model
    was trained. original_size, crop, target_size: SDXL's micro-conditioning, (height, width), (top, left), (height,
    width); the size itself when `None`. timestep_map: "interpolated" as diffusers and A1111, "nearest" as ComfyUI
    (trap T19).

    image: a picture to start from, or to edit, by the model's kind: image to image, inpainting with a mask,
    InstructPix2Pix. strength: how much of it may change, counted as `strength_convention` does. mask: white is drawn
    anew, black is kept, gray in between. depth: a map for models that read one, near is white. paste: whether what the
    mask keeps is put back pixel by pixel. image_guidance_scale: of InstructPix2Pix. regions: prompts for parts of the
    picture; regions_by: "estimates" asks the network once for each and joins what it says (latent couple), "attention"
    asks once and lets each part look at its own prompt only. high_resolution: a second pass over the enlarged picture.
    views: overlapping windows for pictures larger than the network was trained at. seamless: axes along which opposite
    edges continue each other. variation_seed, variation_strength: noise on the way from one seed's to another's.
    refiner_switch: share of the noise levels that the base model draws before a refiner goes on. adapters: that act on
    the base model, all as given, or a stack that decides which do; those of a region act there besides. Errors:
    `InvalidInput`.
    """

    prompt: str
    negative_prompt: str = ""
    steps: int = 20
    guidance_scale: float = 5.0
    guidance_method: str = "cfg"
    seed: int = 0
    count: int = 1
    size: tuple[int, int] | None = None
    sampler: str = "dpmpp_2m"
    sampler_options: Mapping[str, float] = field(default_factory=dict)
    schedule: str = "karras"
    sigmas: tuple[float, ...] | None = None
    discard_penultimate: bool | None = None
    dialect: str = "a1111"
    clip_skip: int | None = None
    original_size: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)
    target_size: tuple[int, int] | None = None
    timestep_map: str = "interpolated"
    image: Image.Image | None = None
    strength: float = 0.8
    strength_convention: StrengthConvention = "diffusers"
    mask: Image.Image | None = None
    depth: Image.Image | None = None
    paste: bool = True
    image_guidance_scale: float = 1.5
    regions: tuple[Region, ...] = ()
    regions_by: RegionsBy = "estimates"
    high_resolution: HighResolution | None = None
    views: Views | None = None
    seamless: Axes = "none"
    variation_seed: int | None = None
    variation_strength: float = 0.0
    refiner_switch: float = 0.8
    adapters: tuple[Adapter, ...] | AdapterStack = ()

    def __post_init__(self) -> None:
        for name in ("prompt", "negative_prompt"):
            if not isinstance(getattr(self, name), str):
                raise InvalidInput(name, repr(getattr(self, name)), "text; it may be empty")
        for name in ("steps", "count"):
            if getattr(self, name) < 1:
                raise InvalidInput(name, getattr(self, name), "at least 1")
        if not 0 <= self.seed <= MAX_SEED - self.count + 1:
            raise InvalidInput("seed", self.seed, f"a whole number from 0 to 2^64 - {self.count}")
        for name in ("guidance_scale", "image_guidance_scale"):
            if not math.isfinite(getattr(self, name)):
                raise InvalidInput(name, getattr(self, name), "a finite number", "1 turns guidance off")
        if self.clip_skip is not None and self.clip_skip < 1:
            raise InvalidInput("clip_skip", self.clip_skip, "1 (the last layer) or more")
        self._check_pictures()
        for name, known in (
            ("seamless", get_args(Axes)),
            ("strength_convention", get_args(StrengthConvention)),
            ("regions_by", get_args(RegionsBy)),
        ):
            if getattr(self, name) not in known:
                raise InvalidInput(name, repr(getattr(self, name)), f"one of {', '.join(known)}")
        for name in ("strength", "variation_strength", "refiner_switch"):
            require_strength(name, getattr(self, name))
        if self.variation_seed is not None and not 0 <= self.variation_seed <= MAX_SEED - self.count + 1:
            raise InvalidInput("variation_seed", self.variation_seed, f"a whole number from 0 to 2^64 - {self.count}")
        if self.variation_strength and self.variation_seed is None:
            raise InvalidInput("variation_strength", self.variation_strength, "0 without a variation_seed", "give both")

    @property
    def seeds(self) -> list[int]:
        return [self.seed + k for k in range(self.count)]

    def to_json(self) -> dict[str, Any]:
        """The request in JSON's words; pictures become their size and hash."""
        json = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in PICTURES:
            json[name] = None if json[name] is None else describe_picture(json[name])
        json["regions"] = [
            {f.name: getattr(region, f.name) for f in fields(region)}
            | {"adapters": [adapter.to_json() for adapter in region.adapters]}
            for region in self.regions
        ]
        match self.adapters:
            case AdapterStack() as stack:
                json["adapters"] = stack.to_json()
            case adapters:
                json["adapters"] = [adapter.to_json() for adapter in adapters]
        for name in ("high_resolution", "views"):
            json[name] = None if json[name] is None else asdict(json[name])
        return json | {"sampler_options": dict(self.sampler_options)}

    @classmethod
    def from_json(cls, json: Mapping[str, Any], **pictures: Image.Image | None) -> "GenerationRequest":
        """The request that `to_json` wrote, with the pictures that it names, of which only size and hash are stored.

        Errors: `InvalidInput` for unknown or missing fields, and for a picture that is missing or another one.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(json.keys() - known)
        if unknown or "prompt" not in json:
            raise InvalidInput("request", unknown or "without a prompt", f"the fields {', '.join(sorted(known))}")
        values: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in json.items()}
        for name in PICTURES:
            values[name] = _same_picture(name, values.get(name), pictures.get(name))
        values["regions"] = tuple(_region(region) for region in values.get("regions", ()))
        adapters = values.get("adapters", ())
        values["adapters"] = AdapterStack.from_json(adapters) if isinstance(adapters, Mapping) else _adapters(adapters)
        for name, part in (("high_resolution", HighResolution), ("views", Views)):
            values[name] = None if values.get(name) is None else _part(part, values[name])
        return cls(**values)

    def _check_pictures(self) -> None:
        for name in PICTURES:
            picture = getattr(self, name)
            if picture is not None and not isinstance(picture, Image.Image):
                raise InvalidInput(name, type(picture).__name__, "a PIL image", "open the file with PIL.Image.open")
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


def _same_picture(name: str, described: object, given: Image.Image | None) -> Image.Image | None:
    """The picture that was described, which has to be the one given."""
    if described is None:
        if given is not None:
            raise InvalidInput(name, "given", "none, because the request was made without one")
        return None
    if given is None:
        raise InvalidInput(name, None, "the picture that the request was made from", f"give it again (--{name})")
    if describe_picture(given) != described:
        raise InvalidInput(name, "{}x{}".format(*given.size), "the same picture as before", "its pixels differ")
    return given


def _region(given: Any) -> Region:
    if isinstance(given, Region):
        return given
    return part_from_json(Region, {**given, "adapters": _adapters(given.get("adapters", ()))})


def _adapters(given: Iterable[Any] | AdapterStack) -> tuple[Adapter, ...] | AdapterStack:
    if isinstance(given, AdapterStack):
        return given
    return tuple(one if isinstance(one, Adapter) else Adapter.from_json(one) for one in given)


def _part(cls: Any, given: Any) -> Any:
    return given if isinstance(given, cls) else part_from_json(cls, given)
