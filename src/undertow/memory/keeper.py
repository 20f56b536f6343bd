"""The memory of an engine: which networks are in it, what counts against a budget, and what can be done for less."""

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from torch import nn

from undertow.checkpoints.keymap.prefixes import Component as PartName
from undertow.checkpoints.read.home import FileHome
from undertow.checkpoints.read.model import LoadedModel
from undertow.encoders.clip import TextEncoder, parameter_name
from undertow.free_memory import free_bytes
from undertow.memory.adapter_networks import AdapterNetworks
from undertow.memory.component import (
    HEADROOM_BYTES,
    READ_AT_EVERY_STEP,
    READ_FOR_A_PICTURE,
    READ_ONCE,
    Component,
    HostHome,
    Part,
)
from undertow.memory.forecast import PROCESS_BYTES
from undertow.memory.heap import give_back, give_back_at_once
from undertow.memory.ladder import Economy, Possible
from undertow.memory.monitor import Guard, Tracker, memory_of
from undertow.memory.residency import Cache, Residency

PRIORITIES = {"text": READ_ONCE, "vae": READ_FOR_A_PICTURE, "unet": READ_AT_EVERY_STEP}


Uses = Callable[[object], AbstractContextManager[None]]
"""Has a network in memory inside."""


def always_there(network: object) -> AbstractContextManager[None]:  # noqa: ARG001
    """For networks that never leave memory."""
    return nullcontext()


class Keeper:
    """Keeps an engine's networks within a budget. Without models it keeps nothing and allows everything.

    counting: whether activations are counted against a budget, which compiled graphs do not allow; weights are in any
    case. others_bytes: what the process holds besides these networks and their work; `None` measures it before each
    unit of work, since other models and adapters come and go.
    """

    def __init__(
        self,
        model: LoadedModel | None = None,
        refiner: LoadedModel | None = None,
        *,
        before_eviction: Callable[[], None] = lambda: None,
        caches: Sequence[Cache] = (),
        counting: bool = True,
        others_bytes: int | None = None,
    ):
        self.tracker = Tracker()
        self.guard = Guard(self.tracker)
        self.residency = Residency(
            [*_components("", model), *_components("refiner ", refiner)],
            tracker=self.tracker,
            before_eviction=before_eviction,
            caches=caches,
            quiet=self.guard.aside,
        )
        self._counting = counting
        self.others_bytes = others_bytes
        self.budget_bytes: int | None = None
        unet = None if model is None else model.unet
        self._device = torch.device("cpu") if unet is None else unet.device
        self._memory = memory_of(self._device)
        self._peak: int | None = None

    @property
    def is_tight(self) -> bool:
        """Whether networks come and go, so that work of one kind is better done together."""
        return self.budget_bytes is not None or self.residency.sparing

    def govern(self, budget_bytes: int | None, *, sparing: bool) -> None:
        """Sets the budget for what is done next. sparing: networks that do not work leave at once."""
        self.residency.sparing = sparing
        if budget_bytes == self.budget_bytes:
            return
        self.budget_bytes = budget_bytes
        give_back_at_once(at_once=budget_bytes is not None)
        give_back()
        self._set_limit()
        self.tracker.peak_bytes = self.tracker.held_bytes

    @contextmanager
    def unit(self) -> Generator[None]:
        """A unit of work, whose peak is `peak` afterwards, and which is held to the budget."""
        self._peak = None
        self._memory.begin()
        with ExitStack() as stack:
            if self.budget_bytes is not None:
                self._set_limit()
                self.residency.fit()
                if self._counting:
                    stack.enter_context(self.guard)
            yield

    def peak(self) -> int | None:
        """The most memory in this unit of work, in bytes; looked up once."""
        if self._peak is None:
            self._peak = self._memory.peak()
        return self._peak

    @contextmanager
    def using(self, network: object, economy: Economy | None = None) -> Generator[None]:
        """A network is in memory inside. Errors: `BudgetMemoryError`, and those of reading a file."""
        name = self.residency.name_of(network)
        if economy is not None and economy.evict_idle:
            self.residency.evict_idle((name,))
        with self.residency.acquire(name):
            yield

    @contextmanager
    def drawing(
        self, unet: nn.Module, economy: Economy, *, merged: bool, beside: Collection[nn.Module] = ()
    ) -> Generator[None]:
        """A U-Net is in memory inside, as a whole or layer by layer. merged: adapters are in its weights, which then
        stay. beside: networks that run in the same forward, which stay together: they would come and go at every
        step."""
        name, *others = self._names(unet, *beside)
        if economy.evict_idle:
            self.residency.evict_idle((name, *others))
        if economy.offloaded_layers and not merged and self.residency.can_stream(unet):
            with self.residency.acquire(*others), self.residency.streaming(unet, but=others):
                yield
        else:
            with self.residency.acquire(name, *others):
                yield

    @contextmanager
    def arriving(self, size_bytes: int) -> Generator[None]:
        """Networks of an adapter, of so many bytes, are read inside: others leave if there is no room. Errors:
        `BudgetMemoryError`."""
        with self.residency.arriving(size_bytes):
            yield

    def join(self, networks: AdapterNetworks) -> None:
        """Those of a model's adapters come and go with the model's own. Whoever does a unit of work has them."""
        self.residency.further = networks
        networks.keeper = self

    def possible(
        self,
        network: object,
        *,
        fewer_rows: bool,
        chunks: bool,
        merged: bool,
        attention: bool = False,
        beside: Collection[nn.Module] = (),
    ) -> Possible:
        """What can be done for less memory while a network works. attention: its kernel writes scores out. beside: as
        in `drawing`."""
        return Possible(
            evict=self.residency.can_evict(*self._names(network, *beside)),
            fewer_rows=fewer_rows,
            attention=chunks and attention,
            chunks=chunks,
            offload=chunks and not merged and self.residency.can_stream(network),
        )

    def restore(self, *networks: object) -> None:
        """Brings networks in for whoever calls them directly, where they stay: no budget holds until the next unit of
        work."""
        self.govern(None, sparing=False)
        for network in networks:
            self.residency.acquire(self.residency.name_of(network)).release()

    @property
    def besides_bytes(self) -> int:
        """What the process holds beyond these networks, their work, and what every process takes: other models, and
        adapters that were read."""
        in_use = self._in_use()
        return 0 if in_use is None else max(0, in_use - self.tracker.held_bytes - PROCESS_BYTES)

    def _names(self, *networks: object) -> list[str | None]:
        return [self.residency.name_of(network) for network in networks]

    def _set_limit(self) -> None:
        budget = self.budget_bytes
        self.tracker.limit_bytes = None if budget is None else self._limit(budget)

    def _limit(self, budget_bytes: int) -> int:
        """Of tensors: without what the process holds besides, and what other programs have taken meanwhile."""
        if self.others_bytes is not None:
            return budget_bytes - self.others_bytes
        in_use, free = self._in_use(), free_bytes(self._device)
        if in_use is None:
            return budget_bytes
        most = budget_bytes if free is None else min(budget_bytes, in_use + free - HEADROOM_BYTES)
        return most - max(0, in_use - self.tracker.held_bytes)

    def _in_use(self) -> int | None:
        """What counts against a budget now."""
        in_use = self._memory.in_use()
        return None if in_use is None else in_use + self._memory.code()


def _components(prefix: str, model: LoadedModel | None) -> Iterator[Component]:
    """The networks of a model whose weights can be read again."""
    if model is None:
        return
    homes = model.homes
    networks: list[tuple[str, object, Sequence[tuple[PartName, nn.Module]]]] = []
    if model.unet is not None:
        networks.append(("unet", model.unet, [("unet", model.unet)]))
    if model.vae is not None:
        networks.append(("vae", model.vae, [("vae", model.vae)]))
    if model.text is not None:
        networks.append(("text", model.text, [(one.kind, one) for one in model.text.encoders]))
    for name, network, modules in networks:
        if all(part in homes for part, _ in modules):
            parts = [_part(module, homes[part]) for part, module in modules]
            yield Component(name=prefix + name, network=network, parts=parts, priority=PRIORITIES[name])


def _part(module: nn.Module, home: FileHome) -> Part:
    """The parameters of a module that were read from a file."""
    own, parameters = dict(module.named_parameters()), dict[str, nn.Parameter]()
    for name in home.names:
        inside = parameter_name(name) if isinstance(module, TextEncoder) else name
        if inside in own:
            parameters[name] = own[inside]
    parameters = dict(sorted(parameters.items(), key=lambda item: -item[1].numel()))
    device = next(iter(parameters.values())).device
    return Part(parameters=parameters, home=HostHome.beside(device, home, parameters.values()))
