"""Makes a graph in a process of its own: `python -m undertow.unet.graph_process FOLDER`.

The compiler takes minutes, much memory, and Python's lock, and it tells all threads of its process that they are
compiled; beside it requests are served. Of the call it is given no numbers, only sizes and types.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from undertow.unet.compiled import Predictor
from undertow.unet.tensor_trees import tensors_of, with_tensors

CALL, GRAPH, OUTPUT, SAID = "call.pickle", "graph.pt2", "output.pickle", "said.txt"
"""Files of the folder: what is given, what is made, and what the process said meanwhile."""


class GraphFailed(Exception):
    """The compiler's last words."""


def make_graph(network: nn.Module, inputs: Sequence[Any], folder: Path) -> None:
    """Writes the graph of `network.predict(*inputs)` and the form of its output into an empty folder.

    The graph receives the tensors of `weights_of` and of the inputs. Errors: `GraphFailed`, `OSError`, those of
    pickling.
    """
    (folder / CALL).write_bytes(written_call(network, inputs))
    process = started(folder)
    failed = process.wait()
    assert process.stdin is not None
    process.stdin.close()
    if failed:
        said = (folder / SAID).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise GraphFailed(said[-1] if said else f"it ended with {process.returncode}")


def started(folder: Path) -> subprocess.Popen[bytes]:
    """The process, which ends with this one: it reads from a pipe that only this one holds open."""
    command = [sys.executable, "-m", __name__, str(folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with (folder / SAID).open("wb") as said:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )


def written_call(network: nn.Module, inputs: Sequence[Any]) -> bytes:
    """The network, its inputs and the number of threads, without numbers. Errors: those of pickling."""
    tensors = {id(one): nn.Parameter(_like(one, "meta"), requires_grad=False) for one in weights_of(network).values()}
    copy = deepcopy(network, dict(tensors))
    given = with_tensors(tuple(inputs), (_like(one, "meta") for one in tensors_of(inputs)))
    return pickle.dumps((copy, given, torch.get_num_threads()))


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """All that a network computes with: parameters, and buffers, those of slots too."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


class FlatPredict(nn.Module):
    """`predict` of a network, with all tensors as inputs, and those of its result as outputs. note: is called with the
    result."""

    def __init__(self, network: nn.Module, inputs: Sequence[Any], note: Callable[[Any], object]):
        super().__init__()
        self._call = (Predictor(network), tuple(weights_of(network)), inputs)  # in a tuple: no module of this one
        self._note = note

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        predictor, names, inputs = self._call
        weights = {f"network.{name}": one for name, one in zip(names, tensors, strict=False)}
        given = with_tensors(inputs, iter(tensors[len(names) :]))
        output = functional_call(predictor, weights, given)
        self._note(output)
        return tuple(tensors_of(output))


@torch.no_grad()
def _make(folder: Path) -> None:
    network, inputs, threads = pickle.loads((folder / CALL).read_bytes())
    torch.set_num_threads(threads)
    forms: list[Any] = []
    flat = FlatPredict(network, inputs, forms.append)
    examples = tuple(_like(one, "cpu") for one in (*weights_of(network).values(), *tensors_of(inputs)))
    exported = torch.export.export(flat, examples, strict=False)
    torch._inductor.aoti_compile_and_package(  # pyright: ignore[reportPrivateUsage]  AOTInductor's public name
        exported, package_path=str(folder / GRAPH)
    )
    form = with_tensors(forms[-1], (_like(one, "meta") for one in tensors_of(forms[-1])))
    (folder / OUTPUT).write_bytes(pickle.dumps(form))


def _like(tensor: Tensor, device: str) -> Tensor:
    """A tensor of this form, without numbers."""
    return torch.empty_strided(tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device=device)


def _end_with_parent() -> None:
    """Ends this process and its compilers when nobody waits for the graph any more."""
    os.read(0, 1)  # of the file itself: a buffer would be locked when the interpreter ends
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _make(Path(sys.argv[1]))
