"""Threads of the processor that a worker draws in."""

import pytest
import torch

from undertow.serving.settings import ServerSettings
from undertow.serving.worker.parts import worker_for
from undertow.serving.worker.threads import threads_of_worker, usable_cores

NOTHING: dict[str, str] = {}


@pytest.mark.parametrize(
    ("settings", "cores", "environment", "threads"),
    [
        ({}, 1, NOTHING, 1),
        ({}, 2, NOTHING, 1),  # the other core is the API's
        ({}, 8, NOTHING, 7),
        ({"devices": ("cpu", "cpu")}, 8, NOTHING, 3),
        ({"devices": ("cpu", "cuda:0")}, 8, NOTHING, 7),
        ({"devices": ("cpu",) * 8}, 4, NOTHING, 1),
        ({}, 8, {"OMP_NUM_THREADS": "8"}, None),
        ({}, 8, {"OMP_NUM_THREADS": ""}, 7),
        ({"threads": 2}, 8, {"OMP_NUM_THREADS": "8"}, 2),
    ],
)
def test_a_core_is_left_to_others_and_workers_share_the_rest(settings, cores, environment, threads):
    found = threads_of_worker(ServerSettings(**settings), "cpu", cores=cores, environment=environment)
    assert found == threads


def test_an_accelerator_leaves_the_threads_alone():
    assert threads_of_worker(ServerSettings(threads=2, devices=("cuda:0",)), "cuda:0") is None


@pytest.mark.parametrize(
    ("text", "most"), [("max 100000\n", 10**6), ("100000 100000\n", 1), ("50000 100000\n", 1), ("x\n", 10**6)]
)
def test_a_container_has_the_cores_that_its_quota_pays(tmp_path, text, most):
    (tmp_path / "cpu.max").write_text(text)
    every = usable_cores(tmp_path / "missing")
    assert usable_cores(tmp_path / "cpu.max") == min(every, most)


def test_a_worker_draws_in_them(tmp_path):
    before = torch.get_num_threads()
    try:
        settings = ServerSettings(data=tmp_path, threads=before + 1)
        worker_for(settings, "cpu", name="w").store.close()
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
