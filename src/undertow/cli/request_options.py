"""The options of a request: types, defaults and help are those of the record's fields.

`OPTIONS` says only what an option is called and how it is typed where it is more than a word or a number. Options that
were typed become changes of a request, whether it is a new one or was stored with a picture.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import typer

from undertow.adapters.adapter import Adapter
from undertow.cli.option_values import (
    named_adapters,
    numbers_by_name,
    parse_regions,
    parse_sigmas,
    parse_variation,
)
from undertow.cli.sizes import parse_size
from undertow.engine.parts import HighResolution, StepForecast, Views
from undertow.engine.request import GROUPS, PICTURES, GenerationRequest
from undertow.errors import InvalidInput
from undertow.pictures.files import open_picture
from undertow.records import Record, annotations, defaults, descriptions

Part = TypeVar("Part", HighResolution, StepForecast, Views)

PARTS: Mapping[str, type[Record]] = {
    "forecast_steps": StepForecast,
    "high_resolution": HighResolution,
    "views": Views,
    "adapters": Adapter,
}
"""Records within a request that have options of their own."""


KINDS = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY

CONTEXT = inspect.Parameter("context", KINDS[0], annotation=typer.Context)
"""How typer is asked for what it knows of the command line."""


def _as_typed(value: Any) -> Any:
    return value


@dataclass(frozen=True, kw_only=True)
class RequestOption:
    """An option over a field of a request, or over one of its parts', such as "views.overlap".

    name: of the parameter. flag: as typed, where that is not the name. short: a letter that does the same. form: how
    text of more than a word or number is written. repeatable: it takes several of these. switch: it takes no value.
    optional: there is no such part without it, so that the field's default does not count. unset: what happens without
    it, where the default does not tell. parse: from what was typed to the field; `None` for options that only together
    are one.
    """

    name: str
    field: str
    flag: str = ""
    short: str = ""
    form: str = ""
    repeatable: bool = False
    switch: bool = False
    optional: bool = False
    unset: str = ""
    parse: Callable[[Any], Any] | None = _as_typed

    @property
    def help(self) -> str:
        """The first sentence of the field's description."""
        owner, name = self._place
        sentence = " ".join(descriptions(owner)[name].split()).partition(". ")[0].rstrip(".")
        return f"{sentence}{'; repeatable' if self.repeatable else ''}."

    @property
    def group(self) -> str:
        """The group of fields that its field belongs to."""
        names = list(annotations(GenerationRequest))
        until = names[: names.index(self.field.partition(".")[0]) + 1]
        return next(GROUPS[name] for name in reversed(until) if name in GROUPS)

    def parameter(self) -> inspect.Parameter:
        """What typer reads."""
        option = typer.Option(
            *filter(None, (self.flag or f"--{self.name.replace('_', '-')}", self.short)),
            help=self.help,
            metavar=self.form or None,
            rich_help_panel=self.group,
            show_default=self.unset or True,
        )
        kind, default = self._kind_and_default()
        annotation = Annotated[kind, option]
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    def _kind_and_default(self) -> tuple[Any, Any]:
        owner, name = self._place
        if self.switch:
            return bool, False
        if self.form:
            return (list[str] if self.repeatable else str) | None, None
        if name in PICTURES:
            return Path | None, None
        kind = _plain(annotations(owner)[name])
        return (kind | None, None) if self.optional else (kind, defaults(owner)[name])

    @property
    def _place(self) -> tuple[type[Record], str]:
        part, dot, name = self.field.partition(".")
        return (PARTS[part], name) if dot else (GenerationRequest, part)


def _plain(annotation: Any) -> Any:
    """A type without what is annotated of it."""
    if get_origin(annotation) is Annotated:
        return get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        (kind,) = (_plain(one) for one in get_args(annotation) if one is not NoneType)
        return kind | None
    return annotation


def _picture(name: str) -> RequestOption:
    return RequestOption(name=name, field=name, parse=partial(open_picture, f"--{name}"))


OPTIONS: Sequence[RequestOption] = (
    RequestOption(name="negative", field="negative_prompt"),
    RequestOption(name="dialect", field="dialect"),
    RequestOption(name="clip_skip", field="clip_skip", unset="as trained"),
    RequestOption(name="seed", field="seed", form="NUMBER|random", unset="random", parse=None),
    RequestOption(name="count", field="count", short="-n", parse=None),
    RequestOption(name="variation", field="variation_strength", form="SEED:STRENGTH", parse=None),
    RequestOption(name="steps", field="steps", short="-s", unset="20; 4 with distilled models"),
    RequestOption(name="sampler", field="sampler"),
    RequestOption(
        name="sampler_options",
        field="sampler_options",
        flag="--sampler-option",
        form="NAME=NUMBER",
        repeatable=True,
        parse=partial(numbers_by_name, "--sampler-option"),
    ),
    RequestOption(name="schedule", field="schedule"),
    RequestOption(name="timestep_map", field="timestep_map"),
    RequestOption(name="noise_convention", field="noise_convention"),
    RequestOption(name="sigmas", field="sigmas", form="SIGMA,SIGMA,...", parse=parse_sigmas),
    RequestOption(name="forecast_steps", field="forecast_steps.every", optional=True, parse=None),
    RequestOption(name="refiner_switch", field="refiner_switch"),
    RequestOption(name="guidance", field="guidance_scale", unset="5; 1 with distilled models"),
    RequestOption(name="guidance_method", field="guidance_method"),
    RequestOption(name="image_guidance", field="image_guidance_scale"),
    _picture("image"),
    RequestOption(name="strength", field="strength"),
    RequestOption(name="strength_as", field="strength_convention"),
    _picture("mask"),
    _picture("depth"),
    RequestOption(name="size", field="size", form="WIDTHxHEIGHT", unset="the model's own", parse=parse_size),
    RequestOption(name="enlarge", field="high_resolution.scale", optional=True, parse=None),
    RequestOption(name="enlarge_strength", field="high_resolution.strength", parse=None),
    RequestOption(name="views", field="views", switch=True, parse=None),
    RequestOption(name="view_overlap", field="views.overlap", optional=True, unset=f"{Views().overlap}", parse=None),
    RequestOption(
        name="regions",
        field="regions",
        form="PROMPT@L,T,R,B[,WEIGHT]",
        repeatable=True,
        parse=parse_regions,
    ),
    RequestOption(name="regions_by", field="regions_by"),
    RequestOption(name="seamless", field="seamless"),
    RequestOption(name="embeddings", field="embeddings", flag="--embedding", form="FILE", repeatable=True, parse=None),
    RequestOption(
        name="loras", field="adapters.scale", flag="--lora", form="LORA[@SCALE[,SCALE...]]", repeatable=True, parse=None
    ),
    RequestOption(
        name="lora_blocks",
        field="adapters.blocks",
        flag="--lora-block",
        form="PATTERN=FACTOR",
        repeatable=True,
        parse=None,
    ),
    RequestOption(
        name="adapters",
        field="adapters.image",
        flag="--adapter",
        form="FILE[@SCALE][=PICTURE[,PICTURE...]]",
        repeatable=True,
        parse=None,
    ),
    RequestOption(
        name="adapter_masks",
        field="adapters.mask",
        flag="--adapter-mask",
        form="NAME=PICTURE[,PICTURE...]",
        repeatable=True,
        parse=None,
    ),
)


def with_request_options(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with all `OPTIONS` before its own; its `**options` are those that stood on the command line."""

    @wraps(verb)
    def command(**arguments: Any) -> None:
        context = arguments.pop(CONTEXT.name)
        untyped = [one.name for one in OPTIONS if context.get_parameter_source(one.name).name == "DEFAULT"]
        verb(**{name: value for name, value in arguments.items() if name not in untyped})

    signature = inspect.signature(verb)
    positional, named = ([one for one in signature.parameters.values() if one.kind is kind] for kind in KINDS)
    request = (option.parameter() for option in OPTIONS)
    vars(command)["__signature__"] = signature.replace(parameters=[CONTEXT, *positional, *request, *named])
    return command


def changes(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a request, from options that were typed. Errors: `InvalidInput`."""
    found = {
        option.field: option.parse(options[option.name])
        for option in OPTIONS
        if option.parse is not None and option.name in options
    }
    if "variation" in options:
        found["variation_seed"], found["variation_strength"] = parse_variation(options["variation"])
    if options.keys() & {"loras", "lora_blocks", "adapters", "adapter_masks"}:
        if "lora_blocks" in options and "loras" not in options:
            raise InvalidInput("--lora-block", ", ".join(options["lora_blocks"]), "a --lora that it belongs to")
        found["adapters"] = tuple(one.adapter for one in named_adapters(options))
    return found


def request_of(prompt: str, options: Mapping[str, Any], **rows: Any) -> GenerationRequest:
    """The request that options which were typed make. rows: its seed and its number of pictures. Errors:
    `InvalidInput`."""
    return with_parts(GenerationRequest(prompt=prompt, **changes(options), **rows), options)


def with_parts(request: GenerationRequest, options: Mapping[str, Any]) -> GenerationRequest:
    """The request with the second pass, the views and the forecast steps of options, over what it has of them. Errors:
    `InvalidInput`."""
    high, views = request.high_resolution, request.views
    second = {"scale": options.get("enlarge"), "strength": options.get("enlarge_strength")}
    if "enlarge" in options or high is not None:
        high = _changed(HighResolution() if high is None else high, second)
    elif second["strength"] is not None:
        raise InvalidInput("--enlarge-strength", second["strength"], "an --enlarge that it belongs to")
    if options.keys() & {"views", "view_overlap"}:
        views = _changed(Views() if views is None else views, {"overlap": options.get("view_overlap")})
    forecast = request.forecast_steps
    if "forecast_steps" in options:
        forecast = _changed(StepForecast() if forecast is None else forecast, {"every": options["forecast_steps"]})
    return replace(request, high_resolution=high, views=views, forecast_steps=forecast)


def _changed(part: Part, given: Mapping[str, Any]) -> Part:
    return replace(part, **{name: value for name, value in given.items() if value is not None})
