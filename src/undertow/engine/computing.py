"""How the model that drew a picture was loaded, as far as it decides the picture's bits and somebody chose it.

Like everything in a picture it comes from whoever wrote it: names are looked up, and what takes memory is bounded.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from undertow.attention.policy import as_policy
from undertow.known_names import BackendName, parse_prediction
from undertow.quantization import as_quantization
from undertow.records import Record

PrecisionName = Literal["f32", "f16", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Slots(Record):
    """Room for LoRA in slots, as `AdapterCapacity` has it."""

    slots: Annotated[int, Ge(1), Le(64)]
    rank: Annotated[int, Ge(1), Le(128)] = 16
    per_row: Annotated[int, Ge(1), Le(64)]


@dataclass(frozen=True, kw_only=True)
class Computing(Record):
    """What was chosen in `undertow.load`, by its names there; `None` is what undertow takes by itself. Errors:
    `InvalidInput` for names that nothing has."""

    prediction: str | None = None
    """What the model predicts, where the checkpoint was overruled."""
    precision: PrecisionName | None = None
    """The type of the U-Net and the text encoders."""
    vae_precision: PrecisionName | None = None
    """The type of the autoencoder."""
    quantize: str | Mapping[str, str] | None = None
    """A scheme for the weights of linear layers, or schemes by patterns of their names."""
    backend: BackendName | None = None
    """What computed the U-Net; `None` is "eager"."""
    attention: str | None = None
    """A kernel, or the goal that kernels were chosen for."""
    slots: Slots | None = None
    """Slots for LoRA, where there were some and LoRA were in them."""

    def __post_init__(self) -> None:
        if self.prediction is not None:
            parse_prediction(self.prediction)
        if self.quantize is not None:
            as_quantization(self.quantize)
        if self.attention is not None:
            as_policy(self.attention)

    def chosen(self) -> dict[str, Any]:
        """Its JSON without what nobody chose."""
        return {name: value for name, value in self.to_json().items() if value is not None}

    def __str__(self) -> str:
        """As it is typed."""
        words = []
        for name, value in self.chosen().items():
            if name == "attention" and value in FLAGS:
                words.append(FLAGS[value])
            elif name == "slots":
                words.append(f"--adapter-slots {value['slots']}")
            else:
                text = value if isinstance(value, str) else json.dumps(value)
                words.append(f"--{name.replace('_', '-')} {text}")
        return " ".join(words)


FLAGS = {"math": "--no-flash-attention", "sdpa": "--flash-attention"}
"""Options of `undertow generate` by the kernel that they name."""

PLAIN = Computing()
"""Nothing was chosen."""


def known_of(stored: Mapping[str, Any]) -> Computing:
    """What a description says; what a later undertow may add to it is left out. Errors: `InvalidInput`."""
    known = {field.name for field in fields(Computing)}
    return Computing.from_json({name: value for name, value in stored.items() if name in known})
