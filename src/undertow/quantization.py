"""How the weights of linear layers are quantized: which layers, and by which scheme. A plain value, without torch.

    Quantization(rules=(("*", "int8-dynamic"), ("unet.time_embedding.*", "none")))

Layers are called by their component and diffusers' or transformers' name (`unet.mid_block.attentions.0.proj_in`,
`clip_l.text_model.encoder.layers.0.mlp.fc1`, `vae.decoder.mid_block.attentions.0.to_q`); of several patterns that match
one, the last counts. Convolutions stay as they are: PyTorch has no product of int8 or float8 for them on the devices
that undertow runs on.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from undertow.doors import checked_record
from undertow.errors import InvalidInput
from undertow.lookup import look_up

Scheme = Literal["int8-weights", "int8-dynamic", "float8"]
"""int8-weights: weights are int8 with a scale for each output, and become the type of the input when they are used.
int8-dynamic: inputs too are rounded to int8, with a scale for each token, and the product is one of integers. float8:
the same in float8 (e4m3)."""

Quantized = Literal["int8-weights", "int8-dynamic", "float8", "none"]
"""A scheme for all linear layers, or none for plain weights."""

SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
NONE = "none"
"""In the place of a scheme: the layer stays as it is, or the whole model."""

MULTIPLE_OF: Mapping[Scheme, int] = {"int8-weights": 1, "int8-dynamic": 8, "float8": 16}
"""What inputs and outputs of a layer must be multiples of: the kernels of accelerators take no others."""

NEVER = ("token_embedding", "position_embedding", "class_embedding", "text_projection")
"""Matrices that are looked up and multiply nothing, and one that multiplies a single token of a text."""

METADATA = "undertow.quantization"
"""The key of the header of safetensors files under which the rules stand as JSON."""

SCALE_BYTES = 4
SHOWN = 3


@checked_record
@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Pairs of a pattern of layers' names and a scheme, or "none". Errors: `InvalidInput` for an unknown scheme, and
    for no pattern at all."""

    rules: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        if not self.rules:
            raise InvalidInput("quantization.rules", "()", "at least one pattern", "('*', 'int8-weights') is all")
        for _, scheme in self.rules:
            look_up({name: name for name in (*SCHEMES, NONE)}, scheme, "quantize")

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """Those that are named, each once."""
        return tuple(scheme for scheme in SCHEMES if any(scheme == named for _, named in self.rules))

    def scheme(self, name: str) -> Scheme | None:
        """Of the layer of this name; `None` where it stays as it is."""
        found = next((scheme for pattern, scheme in reversed(self.rules) if fnmatchcase(name, pattern)), NONE)
        return next((scheme for scheme in SCHEMES if scheme == found), None)

    def keeping(self, names: Iterable[str]) -> "Quantization":
        """The same, but these layers stay as they are."""
        return Quantization(rules=(*self.rules, *((name, NONE) for name in names)))

    def layers(self, component: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Scheme]:
        """The schemes of a component's layers, by their names in it. shapes: of its tensors, by name."""
        found: dict[str, Scheme] = {}
        for layer, (outputs, inputs) in linear_layers(shapes):
            scheme = self.scheme(f"{component}.{layer}")
            if scheme is not None and not outputs % MULTIPLE_OF[scheme] and not inputs % MULTIPLE_OF[scheme]:
                found[layer] = scheme
        return found

    def require_matches(self, names: Collection[str], argument: str = "quantize") -> None:
        """names: of all layers that could be quantized. Errors: `InvalidInput` for a pattern that matches none."""
        for pattern, _ in self.rules:
            if not any(fnmatchcase(name, pattern) for name in names):
                few = ", ".join(_spread(names)) or "none here"
                raise InvalidInput(
                    argument,
                    repr(pattern),
                    "a pattern that matches linear layers of this model",
                    f"e.g. {few}; convolutions, norms and embeddings are never quantized",
                )

    def to_json(self) -> str:
        return json.dumps({"rules": [list(rule) for rule in self.rules]})

    @classmethod
    def from_json(cls, text: str) -> "Quantization":
        """Errors: `InvalidInput` for text that is not what `to_json` writes."""
        try:
            rules: Any = json.loads(text)["rules"]
            return cls(rules=tuple((str(pattern), str(scheme)) for pattern, scheme in rules))
        except (ValueError, TypeError, KeyError, RecursionError) as err:
            if isinstance(err, InvalidInput):
                raise
            wanted = '{"rules": [[PATTERN, SCHEME], ...]}'
            raise InvalidInput("quantization", repr(text[:80]), f"JSON such as {wanted}") from err

    def __str__(self) -> str:
        return ", ".join(f"{pattern}: {scheme}" for pattern, scheme in self.rules)


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizedWeights:
    """How much of a component is quantized: numbers in matrices, their rows, each of which has a scale, and how."""

    component: str
    numbers: int
    rows: int
    schemes: tuple[Scheme, ...]

    @classmethod
    def of(
        cls, component: str, layers: Mapping[str, Scheme], shapes: Mapping[str, tuple[int, ...]]
    ) -> "QuantizedWeights":
        """layers: as `Quantization.layers` finds them in these shapes."""
        found = [shape for name, shape in linear_layers(shapes) if name in layers]
        return cls(
            component=component,
            numbers=sum(outputs * inputs for outputs, inputs in found),
            rows=sum(outputs for outputs, _ in found),
            schemes=tuple(scheme for scheme in SCHEMES if scheme in layers.values()),
        )

    def saved_bytes(self, item: int) -> int:
        """How many bytes fewer they take than in a type of `item` bytes."""
        return (item - 1) * self.numbers - SCALE_BYTES * self.rows


def as_quantization(value: "Quantization | str | Mapping[str, str]", argument: str = "quantize") -> Quantization | None:
    """What a caller gave: a scheme for all linear layers, patterns and schemes, or "none" for `None`. Errors:
    `InvalidInput`."""
    if isinstance(value, Quantization):
        return value
    if isinstance(value, str):
        scheme = look_up({name: name for name in (*SCHEMES, NONE)}, value, argument)
        return None if scheme == NONE else Quantization(rules=(("*", scheme),))
    return Quantization(rules=tuple(value.items()))


def linear_layers(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Names and shapes of the matrices that multiply, of a network's tensors by name."""
    for name, shape in shapes.items():
        layer, _, last = name.rpartition(".")
        if last == "weight" and len(shape) == 2 and layer.rpartition(".")[2] not in NEVER:
            yield layer, (shape[0], shape[1])


def _spread(names: Collection[str]) -> list[str]:
    """A few, from the beginning to the end."""
    every = list(names)
    return every[:: max(1, len(every) // SHOWN)][:SHOWN]
