"""What an engine learns of a row whose numbers are not finite, and who finds it out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from undertow.engine.probing import ForwardProbe
from undertow.engine.rows import Origin, Outcome, Row

Cause = Literal["weight", "adapter", "conditioning", "input", "timestep", "overflow", "scores", "arithmetic", "probe"]
"""Why numbers stop being finite. weight: a weight is not finite. adapter: an adapter's numbers are not, or are what
leaves the range. conditioning, input, timestep: what the network is given is not finite, or a timestep is out of range.
overflow: the result leaves the range of the type that it is stored in, and is finite in float32. scores: that of
attention does. arithmetic: float32 leaves its range as well."""

Mitigation = Literal["upcast", "clamp", "fail"]

WHOLE = "the whole U-Net"
"""What was computed in float32 where single modules did not help."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """The first module whose input was finite and whose output was not, in a replay of one row.

    module: its name in the U-Net, or that of a ControlNet ("controlnet.canny.conv_in"); what the network was given
    where that is it ("context"). dtype: that it computes in.
    hidden: whether the prediction was finite all the same, as behind fused attention. detail: the evidence, in words.
    """

    module: str
    kind: str
    dtype: str
    cause: Cause
    origin: Origin
    hidden: bool = False
    detail: str = ""

    def __str__(self) -> str:
        return self._said(f" in {self.module}")

    @property
    def problem(self) -> str:
        """The same without the module, for a sentence that names it."""
        return self._said("")

    def _said(self, where: str) -> str:
        hidden = "; fused attention hides it from the prediction" if self.hidden else ""
        return f"{_NAMES[self.cause]}{where}: {self.detail}{hidden}"

    @property
    def remedy(self) -> str:
        """What helps, where the row cannot be computed."""
        return _REMEDIES[self.cause]


@dataclass(frozen=True, kw_only=True)
class Rescued:
    """What became of a row. outcome: with a finite prediction; `None` where nothing helped. upcast: calls that were
    computed in float32, by module; `WHOLE` where all of them were. clamped: numbers that were cut, by module."""

    fault: Fault
    outcome: Outcome | None = None
    upcast: Mapping[str, int] = field(default_factory=dict[str, int])
    clamped: Mapping[str, int] = field(default_factory=dict[str, int])


@runtime_checkable
class Rescue(Protocol):
    """Finds out why a row's numbers are not finite, and computes it again."""

    def __call__(
        self, row: Row, how: Mitigation, hidden: bool, again: Callable[[ForwardProbe], Outcome]
    ) -> Rescued | None:
        """hidden: the prediction is finite, and numbers inside are not. again: evaluates the row alone, in the same
        number of rows, while a probe is attached. `None` where nothing that is not finite was found."""
        ...


_NAMES: Mapping[Cause, str] = {
    "weight": "weights that are not finite",
    "adapter": "an adapter's numbers",
    "conditioning": "conditioning that is not finite",
    "input": "an input that is not finite",
    "timestep": "a bad timestep",
    "overflow": "overflow",
    "scores": "overflow of attention's scores",
    "arithmetic": "numbers beyond float32",
    "probe": "a probe's answer",
}

_REMEDIES: Mapping[Cause, str] = {
    "weight": "get the checkpoint again; undertow inspect --validate-weights lists what is broken in it",
    "adapter": "lower the adapter's scale, or leave it out",
    "conditioning": "look at the prompt's embeddings and at the text encoder's weights and type",
    "input": "look at what made it: latents that were given, the picture, guidance's scale",
    "timestep": "choose another schedule or other sigmas",
    "overflow": "compute the network by --precision bf16 or f32",
    "scores": "another attention kernel keeps scores in float32: attention 'sdpa'; or --precision f32",
    "arithmetic": "look at the sizes of weights and adapters, and at the input",
    "probe": "let the probe return finite numbers, or None",
}
