"""A ledger of memory: stand-ins for tensors, of which only the size is known, and what lives at the same time.

The walks of this room (`unet_walk.py` and others) go through the networks as their `forward` does, with stand-ins in
place of tensors. A stand-in's memory is taken when it is made and given back when Python drops it, exactly as PyTorch
does, so that a walk which names its variables as the network does holds the same bytes at the same time. That is
exact at every size, needs no torch, and takes a millisecond or two; tests/memory holds it to the allocator.
"""

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod

Shape = tuple[int, ...]
Signature = tuple[str, *tuple[int, ...]]
"""A kernel's name and the numbers that decide how long it takes; `operations.py` says which, kernel by kernel."""


class Buffer:
    """Memory that is taken for as long as this object lives."""

    __slots__ = ("component", "ledger", "level", "module", "size")

    def __init__(self, ledger: "Ledger", size: int):
        self.ledger, self.size = ledger, size
        self.component, self.level, self.module = ledger.component, ledger.level, ledger.module
        ledger.take(self)

    def __del__(self) -> None:
        self.ledger.give_back(self)

    def becomes(self, component: str) -> None:
        """Counts it as another component from now on: an activation that is kept as a skip connection."""
        if self.component != component:
            self.ledger.components[self.component] -= self.size
            self.ledger.components[component] += self.size
            self.component = component


class Array:
    """A stand-in for a tensor: its shape, and the memory that it shares with its views."""

    __slots__ = ("buffer", "item", "other", "shape")

    def __init__(self, shape: Shape, buffer: Buffer, item: int):
        self.shape, self.buffer, self.item = shape, buffer, item

    @property
    def numbers(self) -> int:
        return prod(self.shape)

    def view(self, *shape: int) -> "Array":
        """The same memory in another shape."""
        return Array(shape, self.buffer, self.item)

    def beside(self, other: "Array") -> "Array":
        """The same array, which also keeps another one: a copy whose original has a name in the network."""
        self.other = other
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """The moment at which most memory is taken: how much, of what, and where. workspace: of it, the part that a kernel
    needs for itself."""

    size: int = 0
    workspace: int = 0
    components: dict[str, int] = field(default_factory=dict)
    levels: dict[int, int] = field(default_factory=dict)
    modules: dict[str, int] = field(default_factory=dict)
    module: str = ""
    operation: str = ""


class Ledger:
    """What is taken at the moment, by component, level and module, and the peak so far.

    component, level, module: of what is computed next. item: bytes of a number of the networks' type. slot_numbers: of
    one slot for LoRA in every layer, for each number of its rank.
    """

    def __init__(self, item: int):
        self.item = item
        self.live = 0
        self.peak = Peak()
        self.components: Counter[str] = Counter()
        self.levels: Counter[int] = Counter()
        self.modules: Counter[str] = Counter()
        self.operations: Counter[Signature] = Counter()
        self.slot_numbers = 0
        self.component, self.level, self.module = "other", 0, ""
        self._times = 1

    def take(self, buffer: Buffer) -> None:
        self.live += buffer.size
        self.components[buffer.component] += buffer.size
        self.levels[buffer.level] += buffer.size
        self.modules[buffer.module] += buffer.size

    def give_back(self, buffer: Buffer) -> None:
        self.live -= buffer.size
        self.components[buffer.component] -= buffer.size
        self.levels[buffer.level] -= buffer.size
        self.modules[buffer.module] -= buffer.size
        if not self.modules[buffer.module]:  # few of all modules have something at a time
            del self.modules[buffer.module]

    def new(self, shape: Shape, operation: str, *, item: int | None = None, workspace: int = 0) -> Array:
        """The result of an operation, during which `workspace` bytes more are taken."""
        width = self.item if item is None else item
        made = Array(shape, Buffer(self, prod(shape) * width), width)
        self.note(operation, workspace)
        return made

    @contextmanager
    def held(self, *shapes: Shape, item: int | None = None) -> Generator[None]:
        """A context during which copies of these shapes are taken that nothing refers to by name."""
        width = self.item if item is None else item
        copies = [Buffer(self, prod(shape) * width) for shape in shapes]
        self.note("copy")
        try:
            yield
        finally:
            copies.clear()

    def note(self, operation: str, workspace: int = 0) -> None:
        """Looks whether this is the peak."""
        if self.live + workspace > self.peak.size:
            self.peak = Peak(
                size=self.live + workspace,
                workspace=workspace,
                components={name: size for name, size in self.components.items() if size},
                levels={level: size for level, size in self.levels.items() if size},
                modules=dict(self.modules),
                module=self.module,
                operation=operation,
            )

    def count(self, *signature: str | int) -> None:
        """One more call of a kernel."""
        self.operations[signature] += self._times  # pyright: ignore[reportArgumentType]

    def count_slot(self, inputs: int, outputs: int) -> None:
        """A layer that has slots."""
        self.slot_numbers += self._times * (inputs + outputs)

    @contextmanager
    def at(self, module: str, component: str | None = None, level: int | None = None) -> Generator[None]:
        """A context in which what is computed belongs to this module."""
        before = self.module, self.component, self.level
        self.module = module
        self.component = before[1] if component is None else component
        self.level = before[2] if level is None else level
        try:
            yield
        finally:
            self.module, self.component, self.level = before

    @contextmanager
    def repeated(self, times: int) -> Generator[None]:
        """A context that stands for `times` equal layers one after the other: the peak of each is that of one."""
        self._times *= times
        try:
            yield
        finally:
            self._times //= times
