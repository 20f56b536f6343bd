"""An adapter as a stack sees it: what it is and where it acts, without pictures and before anything is laid out."""

from dataclasses import dataclass

from undertow.adapters.adapter import Adapter
from undertow.adapters.lora.updates import LayerUpdates, ScaledUpdates


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterSummary:
    """An adapter as it was read for a model.

    kind: what it is, in a word or two. size_bytes: memory that it takes. layers: its updates of the U-Net's layers, if
    it has any. points: where it adds something instead (`InjectionPoint.name`). problem: why it cannot be used with
    this model; empty when it can.
    """

    adapter: Adapter
    kind: str = "lora"
    size_bytes: int = 0
    layers: LayerUpdates | None = None
    points: tuple[str, ...] = ()
    problem: str = ""

    @property
    def name(self) -> str:
        return self.adapter.title

    @property
    def scaled(self) -> ScaledUpdates | None:
        """Its updates at the largest of its scales; `None` when nothing acts."""
        scale = max(self.adapter.scales, key=abs)
        return None if self.layers is None or scale == 0 else ScaledUpdates(layers=self.layers, gain=scale)
