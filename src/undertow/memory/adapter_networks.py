"""The networks that adapters bring, which leave memory and come back as the model's own do."""

from collections.abc import Callable, Collection, Generator, Hashable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Protocol, runtime_checkable
from weakref import WeakKeyDictionary

from torch import nn

from undertow.errors import CorruptFile
from undertow.memory.component import Component, HostHome, Part
from undertow.shapes import AnyTensor


@runtime_checkable
class NetworkKeeper(Protocol):
    """Who has networks in memory while they work; `Keeper` does."""

    def using(self, network: object) -> AbstractContextManager[None]:
        """The network is in memory inside."""
        ...

    def arriving(self, size_bytes: int) -> AbstractContextManager[None]:
        """There is room for so many bytes, and what is read inside is not counted as activations."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class WholeFile:
    """A home of weights that are computed from a whole file (other names, other layouts, a type of their own), so that
    one is not read without the others. load: reads the network anew, and says which version of the file it is. Where
    the weights were changed in memory nobody can say what the file's are, and they stay."""

    path: Path
    version: Hashable
    load: Callable[[], tuple[nn.Module, Hashable]]

    @property
    def is_there(self) -> bool:
        return self.path.exists()

    def keep(self, name: str, tensor: AnyTensor) -> bool:
        """A file keeps what it holds, and takes nothing."""
        return False

    def read(self, names: Collection[str], *, mapped: bool = False) -> dict[str, AnyTensor]:
        """Errors: `CorruptFile` for a file that changed since it was first read; those of reading it."""
        if mapped:
            return {}
        network, version = self.load()
        if version != self.version:
            raise CorruptFile(self.path, "the file changed while it was in use", "begin the request again")
        return {name: tensor.detach() for name, tensor in network.named_parameters() if name in set(names)}


class AdapterNetworks:
    """ControlNets, T2I-Adapters, IP-Adapters and image encoders. One is among them as long as somebody holds it.

    keeper: of the engine that works. Without one nothing ever leaves.
    """

    def __init__(self) -> None:
        self.keeper: NetworkKeeper | None = None
        self._components: WeakKeyDictionary[nn.Module, Component] = WeakKeyDictionary()
        self._numbers = count(1)

    def __iter__(self) -> Iterator[Component]:
        return iter(list(self._components.values()))

    def component_of(self, network: object) -> Component | None:
        """`None` for a network that is none of these."""
        return self._components.get(network) if isinstance(network, nn.Module) else None

    @contextmanager
    def arriving(self, size_bytes: int) -> Generator[None]:
        """A network of so many bytes is read inside, for which others leave if there is no room. Errors:
        `BudgetMemoryError`."""
        if self.keeper is None:
            yield
        else:
            with self.keeper.arriving(size_bytes):
                yield

    def add(self, network: nn.Module, title: str, priority: int, home: WholeFile) -> None:
        """A network that was just read from its home; call it inside `arriving`. title: for messages. priority: as in
        `Component`."""
        parameters = dict(sorted(network.named_parameters(), key=lambda item: -item[1].numel()))
        device = next(iter(parameters.values())).device
        part = Part(parameters=parameters, home=HostHome.beside(device, home, parameters.values()))
        if part.home is home:
            part.as_read()
        # Without the network itself: what a value holds keeps its weak key alive.
        self._components[network] = Component(
            name=f"{title} {next(self._numbers)}", network=None, parts=[part], priority=priority
        )

    @contextmanager
    def using(self, *networks: nn.Module) -> Generator[None]:
        """Networks are in memory inside. Errors: `BudgetMemoryError`, and those of reading a file."""
        with ExitStack() as until:
            if self.keeper is not None:
                for network in networks:
                    until.enter_context(self.keeper.using(network))
            yield
