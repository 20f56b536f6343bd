"""Which networks are in memory: two verbs, acquire and release.

What is acquired is in memory and stays until it is released. What is not acquired may leave when another needs the
room, the least needed first. Without a budget nothing ever leaves.
"""

import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, runtime_checkable

import torch

from undertow.memory.adapter_networks import AdapterNetworks
from undertow.memory.component import Component
from undertow.memory.copies import CopyQueue, copies_beside
from undertow.memory.heap import give_back
from undertow.memory.layers import LayerStream
from undertow.memory.monitor import Tracker
from undertow.shortage import is_out_of_memory

Quiet = Callable[[], AbstractContextManager[None]]


@runtime_checkable
class Cache(Protocol):
    """Files in memory that are read again when they are needed."""

    @property
    def size_bytes(self) -> int: ...
    def forget(self) -> None: ...


class Residency:
    """Components in memory, and when they leave. before_eviction: called before weights leave, to restore what was
    changed in them for a while. tracker: counts their bytes, and knows the budget. caches: emptied when everything idle
    has to leave. copies: the second queue of a device, on which layers are copied while others compute.

    sparing: what is idle leaves whenever something else is acquired.

        with residency.acquire("unet") as unet:
            unet(...)
    """

    def __init__(
        self,
        components: Sequence[Component] = (),
        *,
        tracker: Tracker | None = None,
        before_eviction: Callable[[], None] = lambda: None,
        caches: Sequence[Cache] = (),
        quiet: Quiet = nullcontext,
        copies: Callable[[torch.device], CopyQueue | None] = copies_beside,
    ):
        self._own = {one.name: one for one in components}
        self.further = AdapterNetworks()
        self._before_eviction = before_eviction
        self._caches = caches
        self._quiet = quiet
        self._copies = copies
        self._streams: dict[str, LayerStream] = {}
        self._held: Counter[str] = Counter()
        self._lock = threading.RLock()
        self.tracker = Tracker() if tracker is None else tracker
        self.sparing = False
        self.evictions = 0
        self._count()

    @property
    def _components(self) -> dict[str, Component]:
        """The model's, and those that adapters brought meanwhile."""
        return self._own | {one.name: one for one in self.further}

    @property
    def present(self) -> tuple[str, ...]:
        """The components of which something is in memory."""
        return tuple(name for name, one in self._components.items() if one.present_bytes)

    def name_of(self, network: object) -> str | None:
        """The component that a network is; `None` for one that never leaves."""
        found = next((name for name, one in self._own.items() if one.network is network), None)
        brought = self.further.component_of(network) if found is None else None
        return found if brought is None else brought.name

    def acquire(self, *names: str | None) -> "Held":
        """Brings components in, after others have left if there is no room. They stay until they are released; `None`
        needs nothing. Errors: `BudgetMemoryError`, and those of reading a file."""
        wanted = [name for name in names if name is not None]
        if not wanted:
            return Held(self, (), None)
        components = self._components
        with self._lock:
            self._held.update(wanted)
            try:
                if self.sparing:
                    for idle in self._idle():
                        self._evict(idle)
                for name in wanted:
                    self._bring_in(components[name])
            except BaseException:
                self._held.subtract(wanted)
                raise
        return Held(self, wanted, components[wanted[0]].network)

    def release(self, *names: str) -> None:
        """Lets components leave when others need the room."""
        with self._lock:
            self._held.subtract(names)
            assert all(self._held[name] >= 0 for name in names)

    @contextmanager
    def arriving(self, size_bytes: int) -> Generator[None]:
        """A component of so many bytes is read inside and added to `further`, after others have left if there is no
        room. Errors: `BudgetMemoryError`."""
        with self._lock:
            self._make_room(size_bytes)
            with self._moving():
                yield

    @contextmanager
    def streaming(self, network: torch.nn.Module, but: Iterable[str | None] = ()) -> Generator[None]:
        """The layers of a network come in when they are called and leave afterwards; what is there at the end is what
        was computed last. It must not be acquired by anybody else. but: what stays beside it."""
        name = self.name_of(network)
        assert name is not None
        component = self._components[name]
        with self._lock:
            self.evict_idle(but=(name, *but))
            if component.present_bytes:
                self._evict(component)
            try:
                with self._stream(name, network):
                    yield
            finally:
                self._count()

    def _stream(self, name: str, network: torch.nn.Module) -> LayerStream:
        """The same for all forwards of a network: it remembers in which order layers are called."""
        if name not in self._streams:
            component = self._components[name]
            self._streams[name] = LayerStream(
                component,
                network,
                quiet=self._quiet,
                moved=self._count,
                require=self._require,
                has_room=self.tracker.has_room,
                copies=self._copies(next(network.parameters()).device),
            )
        return self._streams[name]

    def can_stream(self, network: object) -> bool:
        """Whether layers of a network can leave memory and come back."""
        name = self.name_of(network)
        with self._moving():
            return name is not None and (not self._components[name].is_present or self._components[name].can_leave)

    def can_evict(self, *but: str | None) -> bool:
        """Whether something idle is in memory that can leave."""
        with self._moving():
            return any(one.size_bytes for one in self._caches) or any(one.can_leave for one in self._idle(but))

    def evict_idle(self, but: Iterable[str | None] = ()) -> int:
        """Everything that is not acquired leaves, but for these, as far as it can, and so do cached files. Returns how
        many bytes that were."""
        with self._lock:
            cached = sum(one.size_bytes for one in self._caches)
            for one in self._caches:
                one.forget()
            return cached + sum(self._evict(one) for one in self._idle(but))

    def fit(self) -> None:
        """What is idle leaves, the least needed first, until what is in memory is within the budget."""
        with self._lock:
            self._count()
            for one in self._idle():
                if self.tracker.has_room(0):
                    return
                self._evict(one)

    def _idle(self, but: Iterable[str | None] = ()) -> list[Component]:
        """Those that are in memory and not acquired, the least needed first."""
        kept = set(but)
        idle = (one for name, one in self._components.items() if not self._held[name] and name not in kept)
        return sorted((one for one in idle if one.present_bytes), key=lambda one: one.priority)

    def _bring_in(self, component: Component) -> None:
        if component.is_present:
            return
        self._make_room(component.absent_bytes)
        try:
            self._read(component)
            return
        except Exception as error:
            if not is_out_of_memory(error) or not self._idle():
                raise
        # Outside of the handler, where nothing of the failed attempt is held any more.
        self.evict_idle()
        self._read(component)

    def _make_room(self, size_bytes: int) -> None:
        for other in self._idle():
            if self.tracker.has_room(size_bytes):
                break
            self._evict(other)
        self._require(size_bytes)

    def _read(self, component: Component) -> None:
        with self._moving():
            component.bring_in()

    def _evict(self, component: Component) -> int:
        """Returns the bytes that left; none where the weights are others than could be read again."""
        self._before_eviction()
        with self._moving():
            if not component.can_leave:
                return 0
            left = component.present_bytes
            component.drop()
        self.evictions += 1
        give_back()
        return left

    def _require(self, size_bytes: int) -> None:
        self.tracker.require(size_bytes)

    @contextmanager
    def _moving(self) -> Generator[None]:
        """Parameters outlive the inference mode in which they come and go, and are counted here."""
        with self._lock, self._quiet(), torch.inference_mode(False), torch.no_grad():
            try:
                yield
            finally:
                self._count()

    def _count(self) -> None:
        self.tracker.weights_bytes = sum(one.present_bytes for one in self._components.values())
        self.tracker.note()


class Held:
    """Components that were acquired; released at the end of a `with` block, or by `release`. network: of the first."""

    def __init__(self, residency: Residency, names: Sequence[str], network: object):
        self._residency, self._names, self.network = residency, names, network

    def release(self) -> None:
        self._residency.release(*self._names)
        self._names = ()

    def __enter__(self) -> object:
        return self.network

    def __exit__(self, *_: object) -> None:
        self.release()
