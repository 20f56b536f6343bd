"""The guidance of a request: a line of text such as "cfg+pag(scale=2,end=0.5)+rescale" to methods in order.

Names and their options are those of `undertow.diffusion.guidance`. `start` and `end`, from 0 to 1, limit a method to
part of the steps. Lists have bars between their entries: "pag(layers=mid_block|up_blocks.0)", "cfg(scale=7|5|3)".
"""

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from undertow.diffusion.guidance import (
    AdaptiveProjected,
    ClassifierFree,
    DualGuidance,
    During,
    DynamicThreshold,
    EmbeddedScale,
    Guidance,
    Method,
    Mimic,
    PerturbedAttention,
    Rescale,
    SelfAttention,
    SmoothedEnergy,
    StepInterval,
    Tangential,
    ZeroStar,
)
from undertow.engine.request import GenerationRequest
from undertow.errors import InvalidInput
from undertow.known_names import split_guidance
from undertow.unet.config import UNetConfig
from undertow.unet.free_u import FreeU
from undertow.unet.guidance_support import check_guidance


@dataclass(frozen=True, kw_only=True)
class Named:
    """A method by name. guided: its scale is the request's. defaults: of what its record does not default."""

    record: type
    guided: bool = False
    defaults: tuple[tuple[str, float], ...] = ()


METHODS: dict[str, Named] = {
    "none": Named(record=ClassifierFree, defaults=(("scale", 1.0),)),
    "cfg": Named(record=ClassifierFree, guided=True),
    "apg": Named(record=AdaptiveProjected, guided=True),
    "zero_star": Named(record=ZeroStar, guided=True),
    "tangential": Named(record=Tangential, guided=True),
    "pag": Named(record=PerturbedAttention, defaults=(("scale", 3.0),)),
    "seg": Named(record=SmoothedEnergy, defaults=(("scale", 3.0),)),
    "sag": Named(record=SelfAttention, defaults=(("scale", 0.75),)),
    "threshold": Named(record=DynamicThreshold),
    "mimic": Named(record=Mimic),
    "rescale": Named(record=Rescale, defaults=(("amount", 0.7),)),
    "free_u": Named(record=FreeU),
}


@dataclass(frozen=True, kw_only=True)
class NamedMethod:
    """A method of a request. options: as they stand in its parentheses. takes_scale: it is as strong as the request
    says."""

    name: str
    options: str
    method: Method | FreeU

    @property
    def takes_scale(self) -> bool:
        return METHODS[self.name].guided and "scale=" not in self.options.replace(" ", "")


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The methods that combine branches, and the change to the decoder, if any."""

    guidance: Guidance
    free_u: FreeU | None = None


def chosen_guidance(request: GenerationRequest, config: UNetConfig, *, unconditional: bool = False) -> Chosen:
    """What `request.guidance_method` says, for this network: "cfg" is InstructPix2Pix' dual guidance where the network
    sees a picture to edit, and the embedded scale where it was distilled with one.

    unconditional: the sampler wants that estimate too. Errors: `InvalidInput` for unknown names and options, values
    out of range, and methods that this network lacks the parts for.
    """
    methods: list[Method] = []
    free_u: FreeU | None = None
    for made in (each.method for each in named_methods(request, config)):
        if isinstance(made, FreeU):
            free_u = made
        else:
            methods.append(made)
    guidance = Guidance(methods=tuple(methods), unconditional=unconditional)
    check_guidance(config, guidance)
    return Chosen(guidance=guidance, free_u=free_u)


def named_methods(request: GenerationRequest, config: UNetConfig) -> tuple[NamedMethod, ...]:
    """What `request.guidance_method` says, method by method. Errors: those of `chosen_guidance`."""
    return tuple(
        NamedMethod(name=name, options=options, method=_made(name, _options(options), request, config))
        for name, options in split_guidance(request.guidance_method)
    )


def _made(name: str, options: dict[str, Any], request: GenerationRequest, config: UNetConfig) -> Any:
    named = METHODS[name]
    interval = {
        key: _fitting(f"option {key} of {name}", options.pop(key), float) for key in ("start", "end") if key in options
    }
    record = named.record
    given = dict(named.defaults) | ({"scale": request.guidance_scale} if named.guided else {}) | options
    if record is ClassifierFree and config.guidance_dim is not None:
        method: Any = EmbeddedScale(scale=given["scale"])
    elif record is ClassifierFree and config.in_channels == 2 * config.out_channels:
        method = DualGuidance(
            scale=given["scale"],
            image_scale=given["scale"] if name == "none" else request.image_guidance_scale,
        )
    else:
        known = [field.name for field in fields(record) if field.init]
        if unknown := sorted(given.keys() - set(known)):
            expected = ", ".join((*known, "start", "end"))
            raise InvalidInput(f"option of {name}", ", ".join(unknown), f"one of {expected}")
        hints = get_type_hints(record)
        method = record(**{key: _fitting(f"option {key} of {name}", value, hints[key]) for key, value in given.items()})
    return During(method=method, interval=StepInterval(**interval)) if interval else method


def _fitting(name: str, value: Any, hint: Any) -> Any:
    """A value as its field wants it: words, lists and numbers come from a text, which has no types. Errors:
    `InvalidInput`."""
    if get_origin(hint) is Literal:
        choices = {str(choice): choice for choice in get_args(hint)}
        if (word := _said(value)) not in choices:
            raise InvalidInput(name, repr(word), f"one of {', '.join(choices)}")
        return choices[word]
    if hint is int:
        if not isinstance(value, float | int) or value != value // 1:
            raise InvalidInput(name, _said(value), "a whole number")
        return int(value)
    if hint == tuple[str, ...]:
        return tuple(map(_said, value)) if isinstance(value, tuple) else value
    parts = value if isinstance(value, tuple) and hint is not float else (value,)
    if not all(isinstance(part, float | int) or callable(part) for part in parts):
        raise InvalidInput(name, _said(value), "a number" if hint is float else "a number, or numbers with | between")
    return value


def _said(value: Any) -> str:
    """A value as it stands in the text."""
    if isinstance(value, tuple):
        return "|".join(map(_said, value))
    return f"{value:g}" if isinstance(value, float | int) else str(value)


def _options(text: str) -> dict[str, Any]:
    """NAME=VALUE with commas between: numbers, words, and lists with bars."""
    options: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise InvalidInput("guidance_method", repr(part), "NAME=VALUE", "for example scale=2")
        values = [_value(word) for word in value.split("|")]
        options[name] = tuple(values) if len(values) > 1 or name == "layers" else values[0]
    return options


def _value(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word
