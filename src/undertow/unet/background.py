"""Graphs that are made in the background, while operations are run one by one: nobody waits for the compiler."""

import logging
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Condition, Thread
from typing import Any

import torch
from torch import nn

from undertow.unet.compiled import Graphs, MakesGraphs, NoGraph
from undertow.unet.tensor_trees import Kind, kind_of, tensors_of, with_tensors

logger = logging.getLogger(__name__)


class BackgroundGraphs:
    """Computes `predict` of networks in graphs where there are any yet, and without where they are still being made.

    The first call of every kind (network, sizes, present ports and conditioning) asks a thread for a graph; calls are
    computed eagerly until it is there, and for ever where making it fails, which is logged. So the bits of a picture
    depend on when a graph became ready; both ways agree within rounding. What any process of this machine compiled
    before comes from inductor's cache on disk, within seconds.
    """

    def __init__(self, graphs: MakesGraphs | None = None):
        self._graphs = Graphs() if graphs is None else graphs
        self._wanted: SimpleQueue[tuple[Kind, Callable[[], None]]] = SimpleQueue()
        self._made: dict[Kind, bool | None] = {}
        """Whether there is a graph; `None` while it is being made."""
        self._changed = Condition()
        self._thread: Thread | None = None

    def __reduce__(self) -> tuple[type["BackgroundGraphs"], tuple[MakesGraphs]]:
        """A copy of a network that computes in them asks for its own."""
        return BackgroundGraphs, (self._graphs,)

    def predict(self, network: nn.Module, *inputs: Any) -> Any:
        """`network.predict(*inputs)`."""
        kind = (id(network), torch.is_grad_enabled(), torch.is_inference_mode_enabled(), kind_of(inputs))
        with self._changed:
            if kind not in self._made:
                self._ask(kind, network, inputs)
            made = self._made[kind]
        if made:
            try:
                return self._graphs.predict_made(network, *inputs)
            except NoGraph as error:  # something about the call that has no part in its kind
                self._settle(kind, error)
        return network.predict(*inputs)  # pyright: ignore[reportCallIssue]  networks have one

    @property
    def ready(self) -> int:
        """The number of graphs that there are."""
        return sum(made is True for made in self._made.values())

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits until every graph that was asked for is made or has failed; returns whether it came to that."""
        with self._changed:
            return self._changed.wait_for(lambda: None not in self._made.values(), timeout_s)

    def _ask(self, kind: Kind, network: nn.Module, inputs: Sequence[Any]) -> None:
        """Asks the thread for a graph. What it is made with are copies: the caller goes on to change its own."""
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        copies = with_tensors(inputs, (one.clone() for one in tensors_of(inputs)))
        threads = torch.get_num_threads()

        def make() -> None:
            torch.set_num_threads(threads)  # graphs are made for a number of threads, which each thread has of its own
            with torch.inference_mode(modes[1]), torch.set_grad_enabled(modes[0]):
                self._graphs.predict(network, *copies)

        self._made[kind] = None
        self._wanted.put((kind, make))
        if self._thread is None:
            self._thread = Thread(target=self._work, name="undertow-compiler", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            kind, make = self._wanted.get()
            try:
                make()
            except Exception as error:
                self._settle(kind, error)
            else:
                self._settle(kind)
            del make  # and with it the copies

    def _settle(self, kind: Kind, error: Exception | None = None) -> None:
        if error is not None:
            inside = getattr(error, "inner_exception", error)  # the compiler's error names only itself
            said = str(inside).strip().partition("\n")[0]
            logger.warning("%s: no graph, computed without: %s", type(inside).__name__, said)
        with self._changed:
            self._made[kind] = error is None
            self._changed.notify_all()
