"""The door of every public function: what was given for an argument is refused by name, before any work.

Python says of a wrong argument where it hurt, deep inside; here the caller reads the argument, its value and what was
expected, as `InvalidInput`. Names that other tools use are answered with ours.
"""

import inspect
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache, wraps
from itertools import islice
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from undertow.errors import InvalidInput

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")
Class = TypeVar("Class", bound=type)

ELSEWHERE: Mapping[str, str] = {
    "num_inference_steps": "steps",
    "num_steps": "steps",
    "sampling_steps": "steps",
    "guidance": "guidance_scale",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "negative": "negative_prompt",
    "scheduler": "sampler",
    "sampler_name": "sampler",
    "sampler_index": "sampler",
    "generator": "seed",
    "noise_seed": "seed",
    "num_images_per_prompt": "count",
    "num_images": "count",
    "batch_size": "count",
    "n_iter": "count",
    "width": "size",
    "height": "size",
    "resolution": "size",
    "init_image": "image",
    "init_images": "image",
    "control_image": "image",
    "mask_image": "mask",
    "denoise": "strength",
    "denoising_strength": "strength",
    "clip_stop_at_last_layers": "clip_skip",
    "eta": "sampler_options",
    "callback": "observe",
    "callback_on_step_end": "observe",
    "callback_steps": "observe",
    "step_callback": "observe",
    "lora": "adapters",
    "loras": "adapters",
    "lora_scale": "scale",
    "lora_weight": "scale",
    "adapter_weight": "scale",
    "conditioning_scale": "scale",
    "multiplier": "scale",
    "strength_model": "scale",
    "strength": "scale",
    "weight": "scale",
    "path": "source",
    "file": "source",
    "model": "source",
    "checkpoint": "source",
    "pretrained_model_name_or_path": "source",
    "torch_dtype": "dtype",
    "precision": "dtype",
    "compile": "backend",
    "sample": "latents",
    "timestep": "timesteps",
    "encoder_hidden_states": "conditioning",
    "cross_attention_kwargs": "adapters",
    "hr_scale": "high_resolution",
}
"""By a name in diffusers, A1111, ComfyUI or everyday speech, ours for the same; it counts where ours is known."""


LISTED = 60
"""Names that a message lists, at most; of more it names a few."""


def nearest(name: str, known: Collection[str]) -> str:
    """What somebody who typed `name` may have meant, as a remedy: ours for another tool's name, else near ones, else
    all, or a few of many."""
    ours = ELSEWHERE.get(name)
    if ours is not None and ours in known:
        return f"here it is called {ours!r}{', a pair of height and width' if ours == 'size' else ''}"
    near = get_close_matches(name, known, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    if len(known) <= LISTED:
        return f"it has {', '.join(known)}"
    return f"it has {len(known):,}, such as {', '.join(islice(known, 3))}"


def checked(function: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
    """The function with its arguments checked against its annotations, as far as they say plain types. Errors:
    `InvalidInput` for unknown, missing and unsuitable arguments."""
    signature = inspect.signature(function)
    variadic = {one.name for one in signature.parameters.values() if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}

    @cache
    def hints() -> dict[str, Any]:
        return get_type_hints(function)

    @wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        require_names(signature, args, kwargs)
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if name in hints() and name not in variadic and not _fits(value, hints()[name]):
                raise InvalidInput(name, shown(value), in_words(hints()[name]), _listed(value, hints()[name]))
        return function(*args, **kwargs)

    return call


def checked_record(record: Class) -> Class:
    """A dataclass whose constructor is `checked`."""
    record.__init__ = checked(record.__init__)
    return record


def checked_names_of(record: Class) -> Class:
    """A dataclass whose constructor is `checked_names`."""
    record.__init__ = checked_names(record.__init__)
    return record


def checked_names(function: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
    """The same for names alone, at no cost to calls that are right: for what graphs are compiled from."""

    @wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        try:
            return function(*args, **kwargs)
        except TypeError:  # the signature is read here, because torch.compile cannot trace one
            require_names(inspect.signature(function), args, kwargs)
            raise

    return call


def require_names(signature: inspect.Signature, args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
    """Errors: `InvalidInput` for arguments that a function does not have, or that it is called without."""
    own = [one for one in signature.parameters.values() if one.name not in ("self", "cls")]
    names = [one.name for one in own if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    takes_others = any(one.kind is one.VAR_KEYWORD for one in own)
    given_values = [*list(args)[len(signature.parameters) - len(own) :], *kwargs.values()]
    if not own and given_values:
        raise InvalidInput("arguments", ", ".join(map(shown, given_values)), "none: this function takes no arguments")
    for name in kwargs:
        if name not in names and not takes_others:
            raise InvalidInput(name, shown(kwargs[name]), "an argument of this function", nearest(name, names))
    try:
        signature.bind(*args, **kwargs)
    except TypeError as err:
        given = {*kwargs, *list(signature.parameters)[: len(list(args))]}
        missing = [one.name for one in own if one.default is one.empty and one.name in names and one.name not in given]
        if missing:
            raise InvalidInput(missing[0], "missing", "a value") from err
        positional = ", ".join(one.name for one in own if one.kind is one.POSITIONAL_OR_KEYWORD)
        remedy = "give the others by name" if positional else "give all by name"
        raise InvalidInput("arguments", str(err), f"by place {positional or 'none'}", remedy) from err


def shown(value: Any) -> str:
    """A value in a message: of what would fill a page, its type."""
    text = reprlib.repr(value) if isinstance(value, str | int | float | list | tuple | dict | NoneType) else ""
    return text if text and "\n" not in text else f"of type {type(value).__name__}"


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value is of an annotated type; annotations that are more than plain types fit anything."""
    origin, of = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _fits(value, of[0])
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in of)
    if origin is Literal:
        return any(value is one or (type(value) is type(one) and value == one) for one in of)
    if origin is tuple and isinstance(value, tuple):
        parts = of[:1] * len(value) if of[-1:] == (...,) else of
        return len(parts) == len(value) and all(map(_fits, value, parts))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(_fits(one, of[1]) for one in value.values())
    if isinstance(origin, type) and issubclass(origin, Sequence) and origin is not tuple:
        return isinstance(value, Sequence) and not isinstance(value, str) and all(_fits(one, of[0]) for one in value)
    return _is_a(value, annotation if origin is None else origin)


def _listed(value: Any, annotation: Any) -> str:
    """What helps where one value is given in place of a list of such."""
    origin, of = get_origin(annotation), get_args(annotation)
    takes_many = isinstance(origin, type) and issubclass(origin, Sequence) and origin is not tuple
    return f"put it into a list: [{shown(value)}]" if takes_many and _fits(value, of[0]) else ""


def _is_a(value: Any, kind: Any) -> bool:
    if kind is None:
        return value is None
    if kind is Callable:
        return callable(value)
    if getattr(kind, "_is_protocol", False):
        members = {*vars(kind), *getattr(kind, "__annotations__", {})}
        return all(hasattr(value, name) for name in members if name == "__call__" or not name.startswith("_"))
    if not isinstance(kind, type) or is_typeddict(kind):
        return True
    tensors = getattr(kind, "array_type", None)  # of jaxtyping: a tensor of a shape, which is checked where it is used
    if isinstance(tensors, type):
        return isinstance(value, tensors)
    return isinstance(value, (int, float) if kind is float else kind)


def in_words(annotation: Any) -> str:
    """An annotated type as a sentence names it."""
    origin, of = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return in_words(of[0])
    if origin in (Union, UnionType):
        words = list(dict.fromkeys(map(in_words, of)))
        return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
    if origin is Literal:
        return " or ".join(map(repr, of))
    if origin is tuple and of[-1:] != (...,):
        return f"({', '.join(map(in_words, of))})"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"{in_words(of[1])} by name"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"a list, each entry {in_words(of[0])}"
    kind = annotation if origin is None else origin
    if kind is Callable:
        return "a function"
    if isinstance(getattr(kind, "array_type", None), type):
        return "a tensor"
    if getattr(kind, "__name__", "") == "dtype":
        return "torch.float32, torch.float16 or torch.bfloat16"
    plain = {str: "text", int: "a whole number", float: "a number", bool: "True or False", NoneType: "None"}
    name = getattr(kind, "__name__", str(kind))
    return plain.get(kind, f"{'an' if name[:1].lower() in 'aeio' else 'a'} {name}")
