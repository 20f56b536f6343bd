"""How many replicas there should be: a function of what waits and of what was measured."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from undertow.serving.clock.costs import Costs
from undertow.serving.clock.timetable import entry_of
from undertow.serving.cluster.load import Load, load_of, replicas_for
from undertow.serving.cluster.policy import JOBS, SECONDS, QueuePolicy
from undertow.serving.jobs import JobProgress, JobSpec, JobState, JobWork, NewJob

CELLS = 64


def waiting(*, rows: int | None = 8, cost: float = 40.0):
    spec = JobSpec(model="tiny", request={"prompt": "a"}, rows=rows)
    work = JobWork(cells=CELLS, rows=2, steps=20)
    return entry_of(NewJob(key="key", spec=spec, work=work, cost=cost), 0.0)


def measured(**seconds_by_rows: float) -> Costs:
    costs = Costs()
    for name, seconds in seconds_by_rows.items():
        costs.learn("denoise", cells=CELLS, rows=int(name.removeprefix("of_")), seconds=seconds)
    return costs


def test_work_is_row_steps_over_the_throughput_of_forwards_as_wide_as_jobs_get():
    costs = {"tiny": measured(of_2=0.1, of_8=0.2)}
    assert load_of([waiting(), waiting()], costs) == Load(row_steps=80.0, seconds=80.0 / (8 / 0.2), jobs=2)
    assert load_of([waiting(rows=None)], costs).seconds == 40.0 / (2 / 0.1)
    assert load_of([], costs) == Load()


def test_of_a_job_that_runs_what_is_left_counts():
    half = replace(waiting(), state=JobState.RUNNING, progress=JobProgress(step=15, steps=20))
    assert load_of([half], {"tiny": measured(of_8=0.2)}).row_steps == 10.0


@pytest.mark.parametrize(
    ("seconds", "jobs", "wanted"),
    [
        (0.0, 0, 1),  # never none
        (29.0, 9, 1),
        (30.5, 9, 2),
        (95.0, 9, 4),  # never more than allowed
        (95.0, 3, 3),  # one job is drawn by one worker
    ],
)
def test_there_are_as_many_as_catch_up_in_time(seconds, jobs, wanted):
    assert replicas_for(Load(seconds=seconds, jobs=jobs), catch_up_s=30.0, least=1, most=4) == wanted


def said(metrics, *, target=2):
    return SimpleNamespace(
        raw_metrics=metrics,
        target_num_replicas=target,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=4,
    )


def sample(timestamp: float, value: float):
    return SimpleNamespace(timestamp=timestamp, value=value)


def test_the_policy_believes_whoever_looked_last():
    metrics = {
        SECONDS: {"a": [sample(1.0, 300.0), sample(2.0, 20.0)], "b": [sample(3.0, 70.0)]},
        JOBS: {"a": [sample(2.0, 1.0)], "b": [sample(3.0, 9.0)]},
    }
    assert QueuePolicy(catch_up_s=30.0)(said(metrics)) == (3, {})


@pytest.mark.parametrize("metrics", [None, {}, {SECONDS: {}, JOBS: {}}])
def test_it_changes_nothing_before_anybody_has_looked(metrics):
    assert QueuePolicy(catch_up_s=30.0)(said(metrics)) == (2, {})
