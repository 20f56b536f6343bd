"""API keys, their options, workers and costs."""

import dataclasses
import sqlite3

import pytest

from undertow.errors import InvalidInput
from undertow.serving.store.records import Scope, WorkerInfo


def test_a_key_is_found_by_its_secret_which_is_kept_nowhere(store, sqlite_url):
    key, secret = store.keys.create("laptop", [Scope.SUBMIT], max_queued=5, requests_per_minute=60)
    assert secret.startswith("ut_")
    assert len(secret) == 46
    found = store.keys.find(secret)
    assert (found.id, found.max_queued, found.requests_per_minute) == (key.id, 5, 60)
    assert found.allows(Scope.SUBMIT)
    assert not found.allows(Scope.READ)
    assert store.keys.find(secret[:-1]) is store.keys.find("ut_\ud800") is None
    dump = "\n".join(sqlite3.connect(sqlite_url.removeprefix("sqlite:///")).iterdump())
    assert key.id in dump
    assert secret not in dump
    assert secret[3:] not in dump


def test_an_admin_may_do_everything(store):
    assert store.keys.create("boss", [Scope.ADMIN])[0].allows(Scope.READ)


def test_a_revoked_key_is_refused_and_still_listed(any_store, clock):
    key, secret = any_store.keys.create("old")
    assert any_store.keys.revoke(key.id)
    assert not any_store.keys.revoke(key.id)
    assert any_store.keys.find(secret) is None
    assert [one.revoked_at for one in any_store.keys.list()] == [clock.now]


def test_when_a_key_was_used_is_written_once_a_minute(store, clock):
    _, secret = store.keys.create("busy")
    times = []
    for seconds in (0, 30, 31):
        clock.jump(seconds)
        store.keys.find(secret)
        times.append(store.keys.list()[0].last_used - clock.now)
    assert times == [0, -30, 0]


def test_limits_below_one_are_refused(store):
    with pytest.raises(InvalidInput, match="max_queued is 0, expected at least 1"):
        store.keys.create("x", max_queued=0)


def test_options_belong_to_a_key(any_store):
    any_store.key_options.put("A", {"sd_model_checkpoint": "emoji"})
    any_store.key_options.put("A", {"sd_model_checkpoint": "other"})
    assert any_store.key_options.get("A") == {"sd_model_checkpoint": "other"}
    assert any_store.key_options.get("B") == {}


def test_workers_say_what_they_are(any_store, clock):
    info = any_store.workers.hello(WorkerInfo(name="w1", device="cpu", pid=7))
    clock.jump(5)
    any_store.workers.beat(dataclasses.replace(info, state="busy", models=("emoji",), last_step_at=clock.now))
    (seen,) = any_store.workers.list()
    assert (seen.started_at, seen.seen_at, seen.state, seen.models) == (clock.now - 5, clock.now, "busy", ("emoji",))
    assert any_store.workers.list(seen_after=clock.now) == []
    any_store.workers.goodbye("w1")
    assert any_store.workers.list() == []


def test_costs_are_kept_by_model_and_device_and_how_it_computes(any_store, clock):
    costs = any_store.costs
    assert costs.get("emoji", "cpu", "1 thread") is None
    for computing, seconds in (("1 thread", 0.1), ("2 threads", 0.3), ("1 thread", 0.2)):
        clock.jump(1)
        costs.put("emoji", "cpu", computing, {"forward": {"16": seconds}})
    assert costs.get("emoji", "cpu", "1 thread") == {"forward": {"16": 0.2}}
    assert list(costs.all().items()) == [
        (("emoji", "cpu", "2 threads"), {"forward": {"16": 0.3}}),
        (("emoji", "cpu", "1 thread"), {"forward": {"16": 0.2}}),
    ], "what was written last comes last"
