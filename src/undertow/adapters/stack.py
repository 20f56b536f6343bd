"""Several adapters as one thing: in an order, some of them off, with a rule for layers that more than one changes."""

from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from undertow.adapters.adapter import Adapter, as_adapters
from undertow.doors import checked
from undertow.errors import InvalidInput
from undertow.limits import LARGEST_SCALE
from undertow.records import Finite, Names, Record, read_by, require_fields

StrategyName = Literal["sum", "normalised", "weighted", "ties", "orthogonal", "priority"]

STRATEGIES: Mapping[StrategyName, str] = {
    "sum": "changes add up, each at its own scale, as in every other program",
    "normalised": "changes add up with scales divided by the sum of their sizes in that layer",
    "weighted": "changes add up, each scale times the adapter's weight",
    "ties": "each change keeps its largest numbers, a sign is elected, and those of that sign are averaged",
    "orthogonal": "a lower priority keeps what it does to inputs that the higher ones do not react to",
    "priority": "the highest priority alone changes the layer",
}
"""Names, and what becomes of layers that several adapters change."""

DENSITY = 0.2
"""Of "ties": the share of a change that is kept (arXiv:2306.01708, section 5)."""


@dataclass(frozen=True)
class AdapterStack(Record):
    """Adapters by priority, higher first; equal ones keep their order. Iterating gives those that are on.

    A stack never changes: its methods give another one. Errors: `InvalidInput`.
    """

    argument_prefix: ClassVar[str] = "stack."

    adapters: Annotated[tuple[Adapter, ...], read_by(as_adapters)] = ()
    """All of them, on or off."""
    _: KW_ONLY
    strategy: StrategyName = "sum"
    """What becomes of layers that several LoRAs change; see `STRATEGIES`."""
    weights: Mapping[str, Finite] | None = None
    """Weights of adapters by name, 1 for others; for the strategy "weighted" alone."""
    density: Annotated[float, Gt(0), Le(1)] = DENSITY
    """The share of each change that the strategy "ties" keeps."""
    budget_bytes: Annotated[int, Ge(0)] | None = None
    """Memory that all adapters may take together; the lowest priority goes first. `None` is no limit."""
    off: Names = field(default_factory=frozenset)
    """Names of the adapters that are off."""

    def __post_init__(self) -> None:
        ordered = sorted(self.adapters, key=lambda adapter: -adapter.priority)  # stable
        object.__setattr__(self, "adapters", tuple(ordered))
        object.__setattr__(self, "off", frozenset(self.off))
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise InvalidInput(
                "stack.adapters", f"{', '.join(twice)} twice", "a name for each", "give one another name"
            )
        require_fields(self)
        if self.weights is not None:
            self._check_weights(self.weights)
        for name in self.off:
            self._require("stack.off", name)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all adapters, the highest priority first, whether on or off."""
        return tuple(adapter.title for adapter in self.adapters)

    def __iter__(self) -> Iterator[Adapter]:
        """Those that are on, the highest priority first."""
        return (adapter for adapter in self.adapters if adapter.title not in self.off)

    def __len__(self) -> int:
        """How many are on."""
        return sum(1 for _ in self)

    def __getitem__(self, name: str) -> Adapter:
        """The adapter of this name, on or off. Errors: `InvalidInput`."""
        self._require("name", name)
        return self.adapters[self.names.index(name)]

    @checked
    def with_enabled(self, name: str, enabled: bool) -> "AdapterStack":
        """The stack with one adapter on or off. Errors: `InvalidInput` for a name that is not in it."""
        self._require("name", name)
        return replace(self, off=self.off - {name} if enabled else self.off | {name})

    @checked
    def with_scales(self, scales: Mapping[str, float | tuple[float, ...]]) -> "AdapterStack":
        """The stack with other scales for some of its adapters. Errors: `InvalidInput`."""
        for name in scales:
            self._require("scales", name)
        changed = (
            replace(adapter, scale=scales[adapter.title]) if adapter.title in scales else adapter
            for adapter in self.adapters
        )
        return replace(self, adapters=tuple(changed))

    @checked
    def add(self, adapter: Adapter) -> "AdapterStack":
        """The stack with one more, behind those of equal priority. Errors: `InvalidInput` for a name it has already."""
        return replace(self, adapters=(*self.adapters, adapter))

    @checked
    def remove(self, name: str) -> "AdapterStack":
        """The stack without one. Errors: `InvalidInput` for a name that is not in it."""
        self._require("name", name)
        weights = None if self.weights is None else {key: self.weights[key] for key in self.weights if key != name}
        rest = tuple(adapter for adapter in self.adapters if adapter.title != name)
        return replace(self, adapters=rest, weights=weights, off=self.off - {name})

    def _require(self, argument: str, name: str) -> None:
        if name not in self.names:
            raise InvalidInput(argument, repr(name), f"a name in the stack: {', '.join(self.names) or 'it is empty'}")

    def _check_weights(self, weights: Mapping[str, float]) -> None:
        if self.strategy != "weighted":
            raise InvalidInput(
                "stack.weights", dict(weights), f"none with strategy {self.strategy!r}", "use 'weighted'"
            )
        for name, weight in weights.items():
            self._require("stack.weights", name)
            if not abs(weight) <= LARGEST_SCALE:  # which NaN is not either
                expected = f"a number from -{LARGEST_SCALE:,} to {LARGEST_SCALE:,}"
                raise InvalidInput(f"stack.weights[{name!r}]", weight, expected)
