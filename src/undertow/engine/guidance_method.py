"""The guidance of a request: a line of text such as "cfg+pag(scale=2,end=0.5)+rescale", read and checked for a model.
Imports no torch, so that it is refused at the door too.

Names and their options are those of `undertow.diffusion.guidance`. `start` and `end`, from 0 to 1, limit a method to
part of the steps. Lists have bars between their entries: "pag(layers=mid_block|up_blocks.0)", "cfg(scale=7|5|3)".
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from undertow.engine.request import GenerationRequest
from undertow.errors import InvalidInput
from undertow.guidance_options.records import (
    AdaptiveProjectedOptions,
    ClassifierFreeOptions,
    DualGuidanceOptions,
    DynamicThresholdOptions,
    EmbeddedScaleOptions,
    MethodOptions,
    MimicOptions,
    PerturbedAttentionOptions,
    RescaleOptions,
    SelfAttentionOptions,
    SmoothedEnergyOptions,
    TangentialOptions,
    ZeroStarOptions,
)
from undertow.guidance_options.rules import require_order
from undertow.guidance_options.steps import StepInterval
from undertow.known_names import PathName, split_guidance
from undertow.unet.config import UNetConfig
from undertow.unet.free_u import FreeU
from undertow.unet.guidance_support import check_guidance

ARGUMENT = "guidance_method"
INTERVAL = ("start", "end")


@dataclass(frozen=True, kw_only=True)
class Named:
    """A method by name. guided: its scale is the request's. defaults: of what its record does not default."""

    record: type[MethodOptions] | type[FreeU]
    guided: bool = False
    defaults: tuple[tuple[str, float], ...] = ()

    @property
    def options(self) -> list[str]:
        """Names that it may be told; FreeU acts in every step."""
        own = [field.name for field in fields(self.record) if field.init]
        return own if self.record is FreeU else [*own, *INTERVAL]


METHODS: dict[str, Named] = {
    "none": Named(record=ClassifierFreeOptions, defaults=(("scale", 1.0),)),
    "cfg": Named(record=ClassifierFreeOptions, guided=True),
    "apg": Named(record=AdaptiveProjectedOptions, guided=True),
    "zero_star": Named(record=ZeroStarOptions, guided=True),
    "tangential": Named(record=TangentialOptions, guided=True),
    "pag": Named(record=PerturbedAttentionOptions, defaults=(("scale", 3.0),)),
    "seg": Named(record=SmoothedEnergyOptions, defaults=(("scale", 3.0),)),
    "sag": Named(record=SelfAttentionOptions, defaults=(("scale", 0.75),)),
    "threshold": Named(record=DynamicThresholdOptions),
    "mimic": Named(record=MimicOptions),
    "rescale": Named(record=RescaleOptions, defaults=(("amount", 0.7),)),
    "free_u": Named(record=FreeU),
}


@dataclass(frozen=True, kw_only=True)
class NamedMethod:
    """A method of a request. options: as they stand in its parentheses. interval: the steps in which it holds."""

    name: str
    options: str
    method: MethodOptions | FreeU
    interval: StepInterval = StepInterval()

    @property
    def takes_scale(self) -> bool:
        """Whether it is as strong as the request says."""
        return METHODS[self.name].guided and "scale=" not in self.options.replace(" ", "")


def named_methods(request: GenerationRequest, config: UNetConfig) -> tuple[NamedMethod, ...]:
    """What `request.guidance_method` says, method by method: "cfg" is InstructPix2Pix' dual guidance where the network
    sees a picture to edit, and the embedded scale where it was distilled with one.

    Errors: `InvalidInput` for unknown names and options, values out of range, methods that exclude each other, and
    those that this network lacks the parts for.
    """
    found = tuple(_named(name, options, request, config) for name, options in split_guidance(request.guidance_method))
    require_order(ARGUMENT, [(one.name, one.method.role) for one in found if not isinstance(one.method, FreeU)])
    if sum(isinstance(one.method, FreeU) for one in found) > 1:
        raise InvalidInput(ARGUMENT, "free_u twice", "free_u once", "its factors do not add up")
    check_guidance(config, [one.method for one in found])
    return found


def require_guidance(
    methods: Sequence[NamedMethod], *, steps: int, cells: tuple[int, int], path: PathName | None
) -> None:
    """steps: of one pass. cells: height and width of its latents. path: of the model; `None` where it is not known.
    Errors: `InvalidInput` for methods that do not fit the pass."""
    for one in methods:
        if isinstance(one.method, FreeU) or steps == 0:
            continue
        one.method.require_run(steps, path)
        one.method.require_cells(*cells)


def _named(name: str, text: str, request: GenerationRequest, config: UNetConfig) -> NamedMethod:
    named, said = METHODS[name], _options(text)
    if unknown := sorted(said.keys() - set(named.options)):
        raise InvalidInput(f"option of {name}", ", ".join(unknown), f"one of {', '.join(named.options)}")
    hints = get_type_hints(named.record) | dict.fromkeys(INTERVAL, float)
    given = dict(named.defaults) | ({"scale": request.guidance_scale} if named.guided else {}) | said
    fitting = {key: _fitting(f"option {key} of {name}", value, hints[key]) for key, value in given.items()}
    interval = StepInterval(**{key: fitting.pop(key) for key in INTERVAL if key in fitting})
    method = named.record(**fitting)
    if type(method) is ClassifierFreeOptions:
        method = _of_network(name, method, request, config)
    return NamedMethod(name=name, options=text, method=method, interval=interval)


def _of_network(
    name: str, method: ClassifierFreeOptions, request: GenerationRequest, config: UNetConfig
) -> ClassifierFreeOptions:
    """Classifier-free guidance as a network was trained for it."""
    if config.guidance_dim is not None:
        return EmbeddedScaleOptions(scale=method.scale)
    if config.in_channels == 2 * config.out_channels:
        image_scale = method.scale if name == "none" else request.image_guidance_scale
        return DualGuidanceOptions(scale=method.scale, image_scale=image_scale)
    return method


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
    """NAME=VALUE with commas between: numbers, words, and lists with bars. Errors: `InvalidInput`."""
    options: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise InvalidInput(ARGUMENT, repr(part), "NAME=VALUE", "for example scale=2")
        if name in options:
            raise InvalidInput(ARGUMENT, repr(part), f"{name} once", "it is given twice")
        values = [_value(word) for word in value.split("|")]
        options[name] = tuple(values) if len(values) > 1 or name == "layers" else values[0]
    return options


def _value(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word
