"""The fields of a request as keyword arguments, so that editors complete and type checkers refuse them."""

from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import TypedDict

from PIL import Image

from undertow.adapters.adapter import Adapter
from undertow.adapters.stack import AdapterStack
from undertow.checkpoints.identify.few_steps import left_to_model
from undertow.checkpoints.read.model import LoadedModel
from undertow.doors import nearest, shown
from undertow.engine.parts import HighResolution, Region, StepForecast, Views
from undertow.engine.request import Axes, GenerationRequest, NoiseConvention, RegionsBy, StrengthConvention
from undertow.errors import InvalidInput
from undertow.known_names import TimestepMap
from undertow.records import annotations


class RequestSettings(TypedDict, total=False):
    """All fields of `GenerationRequest` but the prompt, with its types and defaults, and what is taken beside a field's
    own type; a test keeps the two equal."""

    negative_prompt: str
    dialect: str
    clip_skip: int | None
    seed: int
    count: int
    variation_seed: int | None
    variation_strength: float
    steps: int
    sampler: str
    sampler_options: Mapping[str, float]
    schedule: str | None
    sigmas: tuple[float, ...] | None
    discard_penultimate: bool | None
    timestep_map: TimestepMap
    noise_convention: NoiseConvention
    forecast_steps: StepForecast | None
    refiner_switch: float
    guidance_scale: float
    guidance_method: str
    image_guidance_scale: float
    image: Image.Image | None
    strength: float
    strength_convention: StrengthConvention
    mask: Image.Image | None
    paste: bool
    depth: Image.Image | None
    size: tuple[int, int] | int | None
    high_resolution: HighResolution | None
    views: Views | None
    regions: tuple[Region, ...] | Region
    regions_by: RegionsBy
    seamless: Axes
    original_size: tuple[int, int] | None
    crop: tuple[int, int]
    target_size: tuple[int, int] | None
    adapters: tuple[Adapter | str | Path, ...] | AdapterStack | Adapter | str | Path
    embeddings: tuple[str, ...]


def request_of(
    prompt: str, settings: RequestSettings, method: Callable[..., object], model: LoadedModel
) -> GenerationRequest:
    """The request that a method was asked for; what is not given is as the model suggests, or as it is by default.
    Errors: `InvalidInput` for a setting that is neither a field of a request nor an argument of the method, with near
    names."""
    known = [*annotations(GenerationRequest), *signature(method).parameters]
    for name in sorted(settings.keys() - annotations(GenerationRequest).keys()):
        raise InvalidInput(name, shown(settings.get(name)), "a field of GenerationRequest", nearest(name, known))
    return GenerationRequest.from_json({"prompt": prompt, **left_to_model(model.suggested, settings), **settings})
