"""The operations that the networks consist of, on stand-ins: what each takes, and the workspace of its kernel.

Workspaces are those of PyTorch's CPU kernels (`workspaces.py`), as torch.profiler shows their allocations
(docs/results/memory.md says how well). Each operation is counted under a signature, by which its seconds can be
measured once:

    ("linear", cells, inputs, outputs)
    ("conv", rows, inputs, outputs, height, width, kernel, stride)
    ("attention", kernel, rows, heads, queries, keys, dim)
    ("group_norm", rows, channels, cells, groups)
    ("layer_norm", cells, width)
    ("add", numbers), ("silu", numbers) and the like
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from undertow.memory.ledger import Array, Ledger, Shape
from undertow.memory.machine import Machine
from undertow.memory.saved import Saved
from undertow.memory.workspaces import (
    batched_bytes,
    conv_bytes,
    grouped_conv_bytes,
    is_spread,
    product_bytes,
    quantized_bytes,
)
from undertow.quantization import Scheme

PATCH_CELLS, NARROW = 256, 8
"""As in `nn.matmul` and `nn.normalization`, which import torch; a test holds them equal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraRows:
    """The weight port of a batch: adapters of each row, and the rank of their slots."""

    per_row: int
    rank: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Operations:
    """Operations on one ledger. kernel, kernels, in_parts: of attention (`attention_walk.py`), as in `Work`. loras: in
    slots; `None` without. saved: for a backward pass; `None` without one. schemes: of linear layers, in place of plain
    products or beside them."""

    ledger: Ledger
    dtype: str
    kernel: str = "auto"
    kernels: tuple[tuple[int, int, str], ...] = ()
    in_parts: bool = False
    machine: Machine = Machine()
    loras: LoraRows | None = None
    saved: Saved | None = None
    schemes: tuple[Scheme, ...] = ()

    def adapts(self) -> bool:
        """Whether the layer that is computed has updates in slots, and keeps its input where they learn."""
        return self.loras is not None and (self.saved is None or ".attentions." in self.ledger.module)

    def save(self, *arrays: Array) -> None:
        """Keeps what the backward pass needs of an operation."""
        if self.saved is not None:
            self.saved.keep(*arrays)

    def save_input(self, x: Array, numbers: int) -> None:
        """Keeps the input of a layer with so many weights, where these learn."""
        if self.saved is not None and self.saved.learns(self.ledger):
            self.saved.mark(self.ledger, numbers if self.saved.everything else 0)
            self.saved.keep(x)

    def linear(self, x: Array, outputs: int, *, adapted: bool = True, copied: bool = False) -> Array:
        """x Wᵀ + b, and what slots add. copied: x lies in another order in memory."""
        inputs, cells = x.shape[-1], x.numbers // x.shape[-1]
        workspace = self._linear_workspace(cells, inputs, outputs) + (x.numbers * x.item if copied else 0)
        y = self.ledger.new((*x.shape[:-1], outputs), "linear", workspace=workspace)
        self.ledger.count("linear", cells, inputs, outputs)
        self.save_input(x, inputs * outputs)
        if self.loras is None or not (adapted and self.adapts()):
            return y
        rows, entries = x.shape[0], self.loras.per_row * self.loras.rank
        self.ledger.count("linear", cells, inputs, entries)
        self.ledger.count("linear", cells, entries, outputs)
        with self._slots(rows, inputs, outputs):
            low = self._batched((rows, cells // rows, entries), inputs)
            self.save(low)
            change = self._batched((rows, cells // rows, outputs), entries).view(*y.shape)
            del low
            return self.elementwise("add", y, change)

    def conv(self, x: Array, outputs: int, kernel: int = 3, *, stride: int = 1, adapted: bool = True) -> Array:
        """A convolution over channels-last memory, zero-padded to the same size, or half of it for `stride` 2."""
        y = self._convolved(x, outputs, kernel, stride)
        self.save_input(x, x.shape[1] * outputs * kernel**2)
        self.save(x)  # autograd keeps it for frozen weights as well
        if self.loras is None or not (adapted and self.adapts()):
            return y
        rows, inputs = x.shape[:2]
        entries = self.loras.per_row * self.loras.rank
        low = (rows, entries, *y.shape[2:])
        with self._slots(rows, inputs * kernel**2, outputs):
            self._convolved_in_groups(x, low, entries, kernel)
            if self.saved is not None:
                self.save(*(self.ledger.new(shape, "reshape") for shape in (x.shape, low)))
            with self.ledger.held(low, low):
                places = low[2] * low[3]
                workspace = batched_bytes(self.machine, self.dtype, self.ledger.item, outputs, entries, places)
                change = self.ledger.new(y.shape, "bmm", workspace=workspace)
            return self.elementwise("add", y, change)

    def _convolved_in_groups(self, x: Array, low: Shape, outputs: int, kernel: int) -> None:
        """Rows become groups of one convolution, which copies everything into an order of its own, or parts of it."""
        workspace = grouped_conv_bytes(self.machine, self.dtype, self.ledger.item, x.shape, outputs, kernel)
        copies = 1 if is_spread(self.ledger.item, x.shape) else 2
        with self.ledger.held(*[x.shape] * copies, low):
            self.ledger.note("conv2d", workspace)

    def _convolved(self, x: Array, outputs: int, kernel: int, stride: int) -> Array:
        rows, inputs, height, width = x.shape
        out_height, out_width = -(-height // stride), -(-width // stride)
        shape = (rows, outputs, out_height, out_width)
        cells = rows * out_height * out_width
        if self.saved is not None:  # the routes of `nn.matmul` are for inference
            return self.plain_conv(x, outputs, kernel, stride=stride)
        if kernel == 1:
            self.ledger.count("linear", cells, inputs, outputs)
            workspace = self.product_workspace(cells, inputs, outputs)
            return self.ledger.new(shape, "linear", workspace=workspace)
        if rows * height * width <= PATCH_CELLS * stride**2 and self.machine.device == "cpu":
            patches = (cells, kernel**2 * inputs)
            self.ledger.count("linear", cells, kernel**2 * inputs, outputs)
            with self.ledger.held((rows, height + 2, width + 2, inputs), patches):
                pass
            workspace = self.product_workspace(cells, kernel**2 * inputs, outputs)
            with self.ledger.held(patches):
                return self.ledger.new(shape, "linear", workspace=workspace)
        return self.plain_conv(x, outputs, kernel, stride=stride)

    def plain_conv(self, x: Array, outputs: int, kernel: int = 3, *, stride: int = 1) -> Array:
        """`torch.nn.Conv2d`, without slots and without `nn.matmul`."""
        rows, inputs, height, width = x.shape
        self.ledger.count("conv", rows, inputs, outputs, height, width, kernel, stride)
        shape = (rows, outputs, -(-height // stride), -(-width // stride))
        return self.ledger.new(shape, "conv2d", workspace=self.conv_workspace(x.shape, outputs, kernel, stride))

    def plain_linear(self, x: Array, outputs: int) -> Array:
        """`torch.nn.Linear`: float32 goes to MKL, which takes its memory elsewhere."""
        inputs, cells = x.shape[-1], x.numbers // x.shape[-1]
        self.ledger.count("linear", cells, inputs, outputs)
        plain = self.product_workspace(cells, inputs, outputs) if self.ledger.item < 4 else 0
        workspace = max(plain, self._linear_workspace(cells, inputs, outputs) if self.schemes else 0)
        return self.ledger.new((*x.shape[:-1], outputs), "linear", workspace=workspace)

    def _linear_workspace(self, cells: int, inputs: int, outputs: int) -> int:
        """Of a product, and of what `nn.quantized` makes for it where weights are quantized."""
        plain = self.product_workspace(cells, inputs, outputs)
        made = [quantized_bytes(scheme, self.ledger.item, cells, inputs, outputs) for scheme in self.schemes]
        return plain + max(made, default=0)

    def conv_workspace(self, x: Shape, outputs: int, kernel: int, stride: int) -> int:
        return conv_bytes(self.machine, self.dtype, self.ledger.item, x, outputs, kernel, stride)

    def group_norm(self, x: Array, groups: int = 32, *, last: bool = True) -> Array:
        """last: of maps whose channels lie last, as the U-Net's do."""
        rows, channels = x.shape[:2]
        self.ledger.count("group_norm", rows, channels, x.numbers // (rows * channels), groups)
        workspace = rows * (groups * 2 * self.ledger.item + (channels + groups) * 8) * self.machine.threads
        self.save(x)
        turned = last and channels < NARROW * groups and self.machine.device == "cpu" and self.ledger.item < 4
        with self.ledger.held(*[x.shape] * turned):
            return self.ledger.new(x.shape, "group_norm", workspace=workspace)

    def layer_norm(self, x: Array) -> Array:
        rows = x.numbers // x.shape[-1]
        self.ledger.count("layer_norm", rows, x.shape[-1])
        self.save(x)
        return self.ledger.new(x.shape, "layer_norm", workspace=2 * rows * self.ledger.item)

    def elementwise(self, operation: str, x: Array, *others: Array, shape: Shape | None = None) -> Array:
        """A result as large as `x`, or of `shape`."""
        if operation in ("silu", "gelu", "mul"):
            self.save(x, *others)
        result = x.shape if shape is None else shape
        made = self.ledger.new(result, operation)
        self.ledger.count(operation, made.numbers)
        return made

    def _batched(self, shape: tuple[int, int, int], inputs: int) -> Array:
        """The product of every row with weights of its own."""
        _, cells, outputs = shape
        item = self.ledger.item
        workspace = batched_bytes(self.machine, self.dtype, item, cells, inputs, outputs, transposed=True)
        return self.ledger.new(shape, "matmul", workspace=workspace)

    @contextmanager
    def _slots(self, rows: int, inputs: int, outputs: int) -> Generator[None]:
        """The updates of each row, gathered from the slots, with gains folded in."""
        assert self.loras is not None
        self.ledger.count_slot(inputs, outputs)
        entries = self.loras.per_row * self.loras.rank
        down, up = (rows, entries, inputs), (rows, outputs, entries)
        with self.ledger.held(down, up, up):
            pass
        if self.saved is not None:
            self.save(self.ledger.new(down, "index"), self.ledger.new(up, "mul"))
        with self.ledger.held(*([down, up] if self.saved is None else [])):
            yield

    def product_workspace(self, cells: int, inputs: int, outputs: int) -> int:
        return product_bytes(self.machine, self.dtype, self.ledger.item, cells, inputs, outputs)
