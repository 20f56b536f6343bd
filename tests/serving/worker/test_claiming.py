"""When a worker looks for jobs: at once where it has nothing to do, seldom beside its work."""

import pytest

from undertow.serving.worker.claiming import LOOK_S, LOOK_SHARE, pause_s


def test_a_worker_without_work_looks_again_before_a_client_can_notice():
    assert pause_s(0.001, is_idle=True) <= 0.005


@pytest.mark.parametrize("took_s", [0.0001, 0.003, 0.2])
def test_beside_work_looks_take_a_small_share_of_the_time(took_s):
    assert pause_s(took_s, is_idle=False) >= LOOK_S
    assert took_s / pause_s(took_s, is_idle=False) <= LOOK_SHARE
