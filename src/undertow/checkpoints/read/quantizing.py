"""Which layers of a checkpoint are quantized while they are loaded: as asked, or as its files say they were written."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from undertow.checkpoints.identify.checkpoint import PartSource
from undertow.checkpoints.keymap.prefixes import Component
from undertow.errors import CorruptFile, InvalidInput
from undertow.lookup import counted
from undertow.nn.quantized import require_scheme
from undertow.quantization import METADATA, Quantization, Scheme, linear_layers
from undertow.state_dicts import Shapes


@dataclass(frozen=True, kw_only=True)
class FoundQuantization:
    """rules: `None` where nothing is quantized. layers: by component and by our names. candidates: names of all layers
    that could be, with their components."""

    rules: Quantization | None
    layers: Mapping[Component, Mapping[str, Scheme]]
    candidates: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """For the report: how many layers are quantized, and how."""
        schemes = Counter(scheme for layers in self.layers.values() for scheme in layers.values())
        return tuple(
            f"{counted(count, 'linear layer')} of {len(self.candidates):,} in {scheme}"
            for scheme, count in schemes.items()
        )

    def require(self, device: torch.device | str | None) -> None:
        """Errors: `InvalidInput` for a scheme that the device has not, and for patterns that match nothing."""
        if self.rules is not None:
            for scheme in self.rules.schemes:
                require_scheme(scheme, device)
            self.rules.require_matches(self.candidates)


def find_quantization(
    asked: Quantization | Literal["stored"] | None,
    parts: Mapping[Component, PartSource],
    shapes: Callable[[], Mapping[Component, Shapes]],
) -> FoundQuantization:
    """asked: "stored" is what the files say; `None` is none. shapes: of the networks that the parts fill.
    Errors: `InvalidInput` for another quantization than that of the files, `CorruptFile`."""
    stored = stored_quantization(parts)
    rules = stored if asked == "stored" else asked
    if isinstance(asked, Quantization) and asked != stored:
        require_unquantized(parts)
    if rules is None:
        return FoundQuantization(rules=None, layers={}, candidates=())
    found = shapes()
    return FoundQuantization(
        rules=rules,
        layers={component: rules.layers(component, one) for component, one in found.items()},
        candidates=tuple(f"{component}.{layer}" for component, one in found.items() for layer, _ in linear_layers(one)),
    )


def require_unquantized(parts: Mapping[Component, PartSource]) -> None:
    """Errors: `InvalidInput` for a model that was quantized when it was written."""
    stored = stored_quantization(parts)
    if stored is not None:
        raise InvalidInput(
            "model",
            f"{next(iter(parts.values())).weights.path}, quantized already ({stored})",
            "a plain one: quantizing twice adds up errors",
            "quantize the model that it was made from",
        )


def stored_quantization(parts: Mapping[Component, PartSource]) -> Quantization | None:
    """What the first part that says anything was written with. Errors: `CorruptFile`."""
    for source in parts.values():
        if METADATA in source.weights.metadata:
            try:
                return Quantization.from_json(source.weights.metadata[METADATA])
            except InvalidInput as err:
                problem = f"{METADATA} in its header says nothing that undertow reads ({err})"
                raise CorruptFile(source.weights.path, problem, "write it anew with undertow quantize") from err
    return None
