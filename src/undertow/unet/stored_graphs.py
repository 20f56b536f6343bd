"""Graphs that stay on disk: made once on a machine, and loaded within a second by every later process.

`torch.compile` keeps its kernels on disk, but traces a network anew in each process before it finds them, which takes
longer than loading the model. AOTInductor (https://docs.pytorch.org/docs/stable/torch.compiler_aot_inductor.html) makes
a library of a whole graph, which needs no tracing and no compiler any more.
"""

import hashlib
import logging
import os
import pickle
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from undertow.attention.chosen import described_kernel
from undertow.cache_folder import VARIABLE, cache_folder, read_cached, write_cached
from undertow.nn.quantized import quantized_layers
from undertow.processor import features
from undertow.unet.compiled import Graphs, NoGraph
from undertow.unet.graph_process import GRAPH, OUTPUT, make_graph, weights_of
from undertow.unet.tensor_trees import Kind, kind_of, tensors_of, with_tensors

logger = logging.getLogger(__name__)

SOURCES = ("attention", "nn", "unet", "adapters/control", "processor.py")
"""What graphs are made of: those of another text are made anew."""

MOST_BYTES = 2**30
"""Of all graphs on disk together; beyond, the ones that were not used for the longest time go."""


class StoredGraph:
    """A graph that was loaded. output: its form."""

    def __init__(self, file: Path, output: Any):
        # Not `torch._inductor.aoti_load_package`: importing it takes longer than all the rest.
        loader = torch._C._aoti.AOTIModelPackageLoader  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        self._loader = loader(str(file), "model", False, 1, -1)
        self._output = output

    def run(self, tensors: list[Tensor]) -> Any:
        return with_tensors(self._output, iter(self._loader.boxed_run(tensors)))


class StoredGraphs:
    """Computes `predict` of networks on a CPU in graphs that stay on disk, one for each kind of call: architecture,
    sizes, types, present ports and conditioning, number of threads and the processor's instructions.

    Networks of one structure share them; weights and slots are inputs and may change. `Graphs` computes what is not
    computed in them: on other devices, with gradients, and what AOTInductor does not take, which is logged.
    """

    def __init__(self, graphs: Graphs | None = None):
        self._graphs = Graphs() if graphs is None else graphs
        self._known: WeakKeyDictionary[nn.Module, dict[Kind, StoredGraph | None]] = WeakKeyDictionary()
        """`None` where there can be none."""

    def __reduce__(self) -> tuple[type["StoredGraphs"], tuple[()]]:
        """A copy of a network that computes in them finds its own."""
        return StoredGraphs, ()

    def predict(self, network: nn.Module, *inputs: Any) -> Any:
        """`network.predict(*inputs)`. Errors: those of `Graphs`."""
        weights = weights_of(network)
        known, kind = self._known.setdefault(network, {}), _kind(weights, inputs)
        if kind not in known:
            known[kind] = _graph(network, weights, inputs) if _storable(weights) else None
        graph = known[kind]
        if graph is None:
            return self._graphs.predict(network, *inputs)
        return graph.run([*weights.values(), *tensors_of(inputs)])

    def predict_made(self, network: nn.Module, *inputs: Any) -> Any:
        """The same, where nothing has to be made for it. Errors: `NoGraph`."""
        weights = weights_of(network)
        known, kind = self._known.get(network, {}), _kind(weights, inputs)
        if kind not in known:
            raise NoGraph("its weights, or the number of threads, have changed")
        graph = known[kind]
        if graph is None:
            return self._graphs.predict_made(network, *inputs)
        return graph.run([*weights.values(), *tensors_of(inputs)])


def _storable(weights: Mapping[str, Tensor]) -> bool:
    return not torch.is_grad_enabled() and all(one.device.type == "cpu" for one in weights.values())


def _kind(weights: Mapping[str, Tensor], inputs: Sequence[Any]) -> Kind:
    modes = torch.is_grad_enabled(), torch.get_num_threads()
    return modes, kind_of(tuple(weights.values())), kind_of(inputs)


def _graph(network: nn.Module, weights: Mapping[str, Tensor], inputs: Sequence[Any]) -> StoredGraph | None:
    """The graph of a kind of call, from disk or made now; `None` where it cannot be made."""
    file = cache_folder() / "graphs" / f"{_name(network, weights, inputs)}.pt2"
    stored = _load(file)
    if stored is not None:
        return stored
    with TemporaryDirectory(prefix="undertow-graph-") as place:
        folder = Path(place)
        try:
            make_graph(network, inputs, folder)
            output = (folder / OUTPUT).read_bytes()
            graph = StoredGraph(folder / GRAPH, pickle.loads(output))
        except Exception as error:  # of pickling, of the compiler, of the loader: torch.compile may still do it
            _say(f"no graph that could be stored, torch.compile makes one of each process: {_first_line(error)}")
            return None
        try:
            _store(folder / GRAPH, output, file)
        except OSError as error:
            _say(
                f"graphs cannot be kept in {file.parent} ({error.strerror}) and are made by each process; "
                f"{VARIABLE} names another folder"
            )
    return graph


def _name(network: nn.Module, weights: Mapping[str, Tensor], inputs: Sequence[Any]) -> str:
    """Digits that calls of one kind share, in all processes."""
    kernel: Any = getattr(network, "kernel", None)
    parts = (
        *(type(one).__qualname__ for one in network.modules()),
        *sorted(quantized_layers(network).items()),
        getattr(network, "config", None),
        None if kernel is None else described_kernel(kernel),
        tuple(weights),
        _kind(weights, inputs),
        features(),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _load(file: Path) -> StoredGraph | None:
    """The graph in a file of the cache; `None` where there is none, or one that does not fit."""
    about = read_cached(file.with_suffix(".json"))
    if not about or not file.exists():
        return None
    if about.get("versions") != _versions():
        _say(f"graphs of another version in {file.parent} are made anew")
        return None
    with suppress(OSError):
        os.utime(file)  # a use, see `_remove_old`
    try:
        return StoredGraph(file, pickle.loads(bytes.fromhex(about["output"])))
    except Exception as error:
        _say(f"a graph in {file.parent} is damaged and made anew: {_first_line(error)}")
        return None


def _store(graph: Path, output: bytes, file: Path) -> None:
    """Errors: `OSError`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(f".{os.getpid()}")
    try:
        shutil.copyfile(graph, draft)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
    write_cached({"versions": _versions(), "output": output.hex()}, file.with_suffix(".json"))
    _remove_old(file.parent, keep=file)


def _remove_old(folder: Path, *, keep: Path) -> None:
    """Removes graphs, the ones that were not used for the longest time first, until `MOST_BYTES` hold the rest. A
    process that has loaded one of them goes on with its own copy."""
    found = [(file, file.stat()) for file in folder.glob("*.pt2")]
    total = sum(about.st_size for _, about in found)
    for file, about in sorted(found, key=lambda one: one[1].st_mtime):
        if total <= MOST_BYTES:
            return
        if file != keep:
            file.with_suffix(".json").unlink(missing_ok=True)
            file.unlink(missing_ok=True)
            total -= about.st_size


@cache
def _versions() -> dict[str, str]:
    """What graphs depend on besides their call."""
    root, digest = Path(__file__).parent.parent, hashlib.sha256()
    for place in SOURCES:
        files = [root / place] if place.endswith(".py") else sorted((root / place).rglob("*.py"))
        for file in files:
            digest.update(file.read_bytes())
    return {"torch": torch.__version__, "undertow": version("undertow"), "sources": digest.hexdigest()[:16]}


@cache
def _say(line: str) -> None:
    """Once in a process."""
    logger.warning("%s", line)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0]
