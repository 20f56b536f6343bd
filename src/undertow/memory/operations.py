"""The operations that the networks consist of, on stand-ins: what each takes, and the workspace of its kernel.

Workspaces are those of PyTorch's CPU kernels, as torch.profiler shows their allocations (docs/results/memory.md says
how well). Each operation is counted under a signature, by which its seconds can be measured once:

    ("linear", cells, inputs, outputs)
    ("conv", rows, inputs, outputs, height, width, kernel, stride)
    ("attention", kernel, rows, heads, queries, keys, dim)
    ("norm", numbers)
    ("elementwise", numbers)
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from undertow.memory.ledger import Array, Ledger, Shape

PATCH_CELLS = 256
"""As in `nn.matmul`, whose module imports torch; a test holds them equal."""

CHUNK, CHUNKED_KEYS = 256, 1024
"""As in `attention.chunked` and `attention.choose`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What of the machine decides about memory. bfloat16: the processor multiplies it by itself. onednn: float32
    products go to oneDNN. threads: of PyTorch."""

    device: str = "cpu"
    bfloat16: bool = True
    onednn: bool = True
    threads: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraRows:
    """The weight port of a batch: adapters of each row, and the rank of their slots."""

    per_row: int
    rank: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Operations:
    """Operations on one ledger. kernel: of attention. loras: in slots; `None` without."""

    ledger: Ledger
    dtype: str
    kernel: str = "auto"
    machine: Machine = Machine()
    loras: LoraRows | None = None

    def linear(self, x: Array, outputs: int, *, adapted: bool = True) -> Array:
        """x Wᵀ + b, and what slots add."""
        inputs, cells = x.shape[-1], x.numbers // x.shape[-1]
        workspace = self._product_workspace(cells, inputs, outputs)
        y = self.ledger.new((*x.shape[:-1], outputs), "linear", workspace=workspace)
        self.ledger.count("linear", cells, inputs, outputs)
        if self.loras is None or not adapted:
            return y
        rows, entries = x.shape[0], self.loras.per_row * self.loras.rank
        self.ledger.count("linear", cells, inputs, entries)
        self.ledger.count("linear", cells, entries, outputs)
        with self._slots(rows, inputs, outputs):
            with self.ledger.held((rows, cells // rows, entries)):
                change = self.ledger.new(y.shape, "matmul")
            return self.elementwise("add", y, change)

    def conv(self, x: Array, outputs: int, kernel: int = 3, *, stride: int = 1, adapted: bool = True) -> Array:
        """A convolution over channels-last memory, zero-padded to the same size, or half of it for `stride` 2."""
        y = self._convolved(x, outputs, kernel, stride)
        if self.loras is None or not adapted:
            return y
        rows, inputs = x.shape[:2]
        low = (rows, self.loras.per_row * self.loras.rank, *y.shape[2:])
        with self._slots(rows, inputs * kernel**2, outputs):
            with self.ledger.held(x.shape, low, low):
                change = self.ledger.new(y.shape, "bmm")
            return self.elementwise("add", y, change)

    def _convolved(self, x: Array, outputs: int, kernel: int, stride: int) -> Array:
        rows, inputs, height, width = x.shape
        out_height, out_width = -(-height // stride), -(-width // stride)
        shape = (rows, outputs, out_height, out_width)
        cells = rows * out_height * out_width
        self.ledger.count("conv", rows, inputs, outputs, height, width, kernel, stride)
        if kernel == 1:
            workspace = self._product_workspace(cells, inputs, outputs)
            return self.ledger.new(shape, "linear", workspace=workspace)
        if rows * height * width <= PATCH_CELLS * stride**2 and self.machine.device == "cpu":
            patches = (cells, kernel**2 * inputs)
            with self.ledger.held((rows, height + 2, width + 2, inputs), patches):
                pass
            workspace = self._product_workspace(cells, kernel**2 * inputs, outputs)
            with self.ledger.held(patches):
                return self.ledger.new(shape, "linear", workspace=workspace)
        return self.ledger.new(shape, "conv2d", workspace=self.conv_workspace(inputs, outputs, kernel))

    def conv_workspace(self, inputs: int, outputs: int, kernel: int) -> int:
        """oneDNN's copy of the weights in its own order, and its scratchpad."""
        return inputs * outputs * kernel**2 * self.ledger.item + 8216

    def group_norm(self, x: Array, groups: int = 32) -> Array:
        rows, channels = x.shape[:2]
        self.ledger.count("norm", x.numbers)
        workspace = rows * (groups * 2 * self.ledger.item + (channels + groups) * 8) * self.machine.threads
        return self.ledger.new(x.shape, "group_norm", workspace=workspace)

    def layer_norm(self, x: Array) -> Array:
        self.ledger.count("norm", x.numbers)
        rows = x.numbers // x.shape[-1]
        return self.ledger.new(x.shape, "layer_norm", workspace=2 * rows * self.ledger.item)

    def elementwise(self, operation: str, x: Array, *others: Array, shape: Shape | None = None) -> Array:
        """A result as large as `x`, or of `shape`."""
        del others  # held by the caller while this is computed
        result = x.shape if shape is None else shape
        made = self.ledger.new(result, operation)
        self.ledger.count("elementwise", made.numbers)
        return made

    def attention(self, query: Array, key: Array, heads: int, *, masked: bool = False) -> Array:
        """Attention of [rows, queries, width] to [rows, keys, width]; the values are as large as the keys."""
        rows, queries, width = query.shape
        keys = key.shape[1]
        name = self.chosen_kernel(keys)
        self.ledger.count("attention", name, rows, heads, queries, keys, width // heads)
        match name:
            case "chunked":
                return self._chunked(query, heads, keys, masked)
            case "math":
                return self._math(query, heads, keys, masked)
            case _:
                return self._fused(query, heads, keys, masked)

    def chosen_kernel(self, keys: int) -> str:
        """What `attention.choose` takes."""
        if self.kernel != "auto":
            return self.kernel
        short = self.machine.device == "cpu" and self.dtype == "bfloat16" and keys <= CHUNKED_KEYS
        return "chunked" if short and self.machine.bfloat16 else "sdpa"

    def _fused(self, query: Array, heads: int, keys: int, masked: bool) -> Array:
        rows, queries, width = query.shape
        statistics = self.ledger.new((rows, heads, queries), "logsumexp", item=4)
        workspace = self._flash_workspace(queries, keys, width // heads)
        if masked:
            mask = self.ledger.new((rows, keys), "mask", item=1 + self.ledger.item)
        result = self.ledger.new(query.shape, "scaled_dot_product_attention", workspace=workspace)
        if masked:
            del mask
            del statistics
            return self.elementwise("where", result)
        return result

    def _flash_workspace(self, queries: int, keys: int, dim: int) -> int:
        """Of `_scaled_dot_product_flash_attention_for_cpu` (aten/src/ATen/native/cpu/FlashAttentionKernel.cpp): the
        scores of one block, their sums and maxima, and its result, for each thread."""
        block = 256 if queries >= 768 else 64 if queries >= 192 else 32
        block, keys = min(block, queries), min(512, keys)
        numbers = block * (keys + 2 + dim)
        halves = 0 if self.ledger.item == 4 else block * keys
        return self.machine.threads * (4 * numbers + 2 * halves)

    def _math(self, query: Array, heads: int, keys: int, masked: bool) -> Array:
        """Everything in float32, the whole score matrix at once."""
        rows, queries, width = query.shape
        upcast = self.ledger.item != 4
        new = self.ledger.new
        wide = new(query.shape, "to", item=4) if upcast else None
        scaled = new(query.shape, "mul", item=4)
        del wide
        wide_keys = new((rows, keys, width), "to", item=4) if upcast else None
        copied = new(query.shape, "clone", item=4), new((rows, keys, width), "clone", item=4)
        scores = new((rows, heads, queries, keys), "bmm", item=4)
        del copied, wide_keys
        del scaled
        if masked:
            previous, scores = scores, new(scores.shape, "masked_fill", item=4)
            del previous
        probabilities = new(scores.shape, "softmax", item=4)
        wide_values = new((rows, keys, width), "to", item=4) if upcast else None
        copied_values = new((rows, keys, width), "clone", item=4)
        result = new(query.shape, "bmm", item=4)
        del copied_values, wide_values
        del probabilities
        if upcast:
            result = new(query.shape, "to")
        del scores
        return self.elementwise("where", result) if masked else self._merged(result)

    def _chunked(self, query: Array, heads: int, keys: int, masked: bool) -> Array:
        rows, queries, width = query.shape
        new = self.ledger.new
        scaled = new(query.shape, "mul")
        parts = []
        for start in range(0, queries, CHUNK):
            count = min(CHUNK, queries - start)
            copied = new((rows, count, width), "clone"), new((rows, keys, width), "clone")
            scores = new((rows, heads, count, keys), "bmm", workspace=self._product_workspace(count, keys, width))
            del copied
            if masked:
                previous, scores = scores, new(scores.shape, "masked_fill")
                del previous
            probabilities = new(scores.shape, "softmax")
            copied_values = new((rows, keys, width), "clone")
            parts.append(
                new((rows, count, width), "bmm", workspace=self._product_workspace(count, keys, width // heads))
            )
            del copied_values, probabilities, scores
        output = new(query.shape, "cat")
        del parts, scaled
        return self._merged(self.elementwise("where", output) if masked else output)

    def _merged(self, output: Array) -> Array:
        """[rows, heads, queries, dim] as [rows, queries, width]: a copy, beside which the original lives on; both are
        given up together."""
        copied = self.ledger.new(output.shape, "flatten")
        copied.buffer = _Both(copied.buffer, output.buffer)  # pyright: ignore[reportAttributeAccessIssue]
        return copied

    @contextmanager
    def _slots(self, rows: int, inputs: int, outputs: int) -> Generator[None]:
        """The updates of each row, gathered from the slots, with gains folded in."""
        assert self.loras is not None
        entries = self.loras.per_row * self.loras.rank
        down, up = (rows, entries, inputs), (rows, outputs, entries)
        with self.ledger.held(down, up, up):
            pass
        with self.ledger.held(down, up, *((up,) if self.loras.per_row > 1 else ())):
            yield

    def _product_workspace(self, cells: int, inputs: int, outputs: int) -> int:
        """oneDNN's block of the weights in its own order."""
        del cells
        return inputs * min(64, outputs) * 4 + 2**16


class _Both:
    """Two buffers that are given up together."""

    __slots__ = ("first", "second")

    def __init__(self, first: object, second: object):
        self.first, self.second = first, second
