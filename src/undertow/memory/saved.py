"""What autograd keeps of a forward pass, so that the backward pass can be computed."""

from dataclasses import dataclass, field

from undertow.memory.ledger import Array, Ledger


@dataclass(kw_only=True, slots=True)
class Saved:
    """What autograd keeps for the backward pass. everything: all weights learn, else LoRA in the transformers alone.
    begun: something that learns has been computed; before it nothing is kept. marks: what was alive when each layer
    that learns was computed, and the numbers that had learned by then; the backward pass comes by in reverse."""

    everything: bool
    arrays: list[Array] = field(default_factory=list)
    begun: bool = False
    marks: list[tuple[int, int]] = field(default_factory=list)
    learned: int = 0

    def mark(self, ledger: Ledger, numbers: int) -> None:
        """A layer with so many numbers that learn."""
        self.marks.append((ledger.live, self.learned))
        self.learned += numbers

    def backward_peak(self, item: int) -> int:
        """The most of what is still kept, and of the gradients that there are already."""
        return max((live + item * (self.learned - before) for live, before in self.marks), default=0)

    def learns(self, ledger: Ledger) -> bool:
        """Whether the weights of the layer that is computed learn, or have updates that do."""
        learns = self.everything or ".attentions." in ledger.module
        self.begun = self.begun or learns
        return learns

    def keep(self, *arrays: Array) -> None:
        if self.begun:
            self.arrays.extend(arrays)
