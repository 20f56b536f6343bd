"""Makes a graph in a process of its own: `python -m undertow.unet.graph_process FOLDER`.

The compiler takes minutes, much memory, and Python's lock, and it tells all threads of its process that they are
compiled; beside it requests are served. Of the call it is given no numbers, only sizes and types.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from undertow.unet.compiled import Predictor
from undertow.unet.tensor_trees import tensors_of, with_tensors

CALL, GRAPH, OUTPUT = "call.pickle", "graph.pt2", "output.pickle"
"""Files of the folder: what is given, and what is made."""


class GraphFailed(Exception):
    """The compiler's last words."""


def make_graph(network: nn.Module, inputs: Sequence[Any], folder: Path) -> None:
    """Writes the graph of `network.predict(*inputs)` and the form of its output into an empty folder.

    The graph receives the tensors of `weights_of` and of the inputs. Errors: `GraphFailed`, `OSError`, those of
    pickling.
    """
    (folder / CALL).write_bytes(written_call(network, inputs))
    command = [sys.executable, "-m", __name__, str(folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise GraphFailed(said[-1])


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


if __name__ == "__main__":
    _make(Path(sys.argv[1]))
