"""When a worker looks for jobs: at once where it has nothing to do, seldom beside its work."""

import time

import pytest

from undertow.serving.worker import claiming
from undertow.serving.worker.claiming import Claiming


class EmptyStore:
    """Nothing waits in it, and a look at it takes a while. changes: that were noticed."""

    def __init__(self, took_s: float):
        self.took_s, self.changes = took_s, 0

    def changed(self, since: int, timeout_s: float) -> int:
        return self.changes

    def queue(self) -> list[object]:
        return []

    def claim(self, worker: str, pick: object, lease_s: float) -> list[object]:
        self.now += self.took_s
        return []


class Freely:
    """A schedule that has room for everything."""

    def choose(self, waiting: object, running: object) -> tuple[bool, None]:
        return True, None

    def is_full(self, running: object) -> bool:
        return False


@pytest.fixture
def looked(monkeypatch):
    """Seconds until a worker may look again, after a look of 1 ms that found nothing while these jobs ran."""

    def until_the_next(running: tuple[object, ...]) -> float:
        store = EmptyStore(0.001)
        store.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: store.now)
        one = Claiming(store=store, timing=Freely(), worker="w", lease_s=30.0)
        one.take(running)
        one.taken()
        store.changes, began = 1, store.now
        while not one.may_look(running):
            store.now += 0.0005
        return store.now - began

    return until_the_next


def test_a_worker_without_work_looks_again_at_once(looked):
    assert looked(()) <= 0.001 / claiming.IDLE_SHARE


def test_beside_work_looks_take_a_small_share_of_the_time(looked):
    assert looked((object(),)) >= claiming.LOOK_S - 0.0015
