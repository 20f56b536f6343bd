"""The schedule: a pure function of who waits and what was served."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.lib.simulated_service import entry_for
from undertow.serving.clock.costs import Costs
from undertow.serving.clock.finish_times import Device, finish_times
from undertow.serving.jobs import JobState, JobWork
from undertow.serving.schedule import CREDIT, PRIORITY_S, FairState, Room, Running, pick
from undertow.serving.worker.timing import running

WORK = JobWork(cells=256, rows=2, steps=10)


def job(name: str, key: str = "a", at: float = 0.0, *, cost: float = 1.0, work: JobWork = WORK, **more):
    return replace(entry_for(name, key, work), submitted_at=at, cost=cost, **more)


def served_in_turn(entries, state=None):
    """The order in which one worker takes all of them, one at a time."""
    state, order, waiting = state or FairState(), [], list(entries)
    while waiting:
        taken = pick(waiting, state, Room(most_jobs=1))
        assert len(taken) == 1  # whoever waits is served: nothing starves
        order += taken
        waiting = [entry for entry in waiting if entry.id not in taken]
    return order


def test_first_come_first_served_across_keys():
    jobs = [job(f"{index}", key, index) for index, key in enumerate("abacbba")]
    assert served_in_turn(reversed(jobs)) == [one.id for one in jobs]


def test_priority_is_worth_a_minute_for_each_step_inside_a_key_and_nothing_outside():
    jobs = [
        job("first", "a", 0),
        job("urgent", "a", 100, priority=2),  # as if it had come 20 seconds before the first
        job("later", "a", 100 + 2 * PRIORITY_S, priority=2),
        job("other", "b", 1, priority=-10),
    ]
    assert served_in_turn(jobs) == ["other", "urgent", "first", "later"]


def test_a_near_deadline_goes_first_inside_a_key():
    jobs = [job("a", at=0), job("late", at=10, deadline_at=1000), job("soon", at=20, deadline_at=50)]
    assert served_in_turn(jobs) == ["soon", "a", "late"]


def test_what_was_running_before_goes_first_and_is_not_charged_again():
    state = FairState()
    jobs = [job("old", "b", 0), job("back", "a", 5, requeued=True, attempt=1)]
    assert served_in_turn(jobs, state) == ["back", "old"]
    assert "a" not in state.served


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 5.0)), min_size=1, max_size=200),
    st.sampled_from([1, 3]),
)
def test_no_key_is_served_more_than_a_quantum_beyond_another_that_waits(arrivals, at_once):
    """Two keys that wait all the time differ by a quantum and a job at most, whoever asks for how much."""
    waiting = [job(f"{n}", key, float(n), cost=cost) for n, (key, cost) in enumerate(arrivals)]
    state, quantum = FairState(), 0.0
    most = max(one.cost for one in waiting)
    served = dict.fromkeys("abc", 0.0)
    backlogged = {one.key for one in waiting}
    while waiting:
        taken = pick(waiting, state, Room(most_jobs=at_once, most_rows=lambda entry: 100))
        assert 1 <= len(taken) <= at_once
        for name in taken:
            one = next(entry for entry in waiting if entry.id == name)
            served[one.key] += one.cost
        quantum = max(quantum, state.quantum)
        waiting = [entry for entry in waiting if entry.id not in taken]
        backlogged &= {one.key for one in waiting}
        if len(backlogged) > 1:
            of_them = [served[key] for key in backlogged]
            assert max(of_them) - min(of_them) <= quantum + at_once * most


def test_whoever_asks_for_little_waits_for_part_of_a_quantum_of_who_asks_for_much():
    many = [job(f"many{n}", "a", n / 1000) for n in range(200)]
    state = FairState()
    waiting = [*many, job("small", "b", 1.0)]
    order = served_in_turn(waiting, state)
    assert order.index("small") <= 24 + 1
    # The second time it has used less, and waits for the rest of the quantum.
    waiting = [*(replace(one, id=f"again{n}") for n, one in enumerate(many)), job("small", "b", 2.0)]
    assert served_in_turn(waiting, state).index("small") <= (1 - CREDIT) * 24 + 2


def test_a_job_that_was_lost_with_others_is_drawn_alone():
    lonely = job("lonely", at=0, alone=True, requeued=True)
    room = Room(most_jobs=8, most_rows=lambda entry: 100)
    state = FairState()
    assert pick([lonely, job("b", at=1), job("c", at=2)], state, room) == ["lonely"]
    running = [Running(entry=lonely, left=5)]
    assert pick([job("b", at=1)], state, replace_room(room, running)) == []
    running = [Running(entry=job("b"), left=5)]
    assert pick([lonely, job("c", at=2)], state, replace_room(room, running)) == []


def replace_room(room: Room, running) -> Room:
    return replace(room, running=running)


def test_only_jobs_that_share_forwards_are_drawn_together():
    room = Room(most_rows=lambda entry: 4)
    running = [Running(entry=job("r"), left=5)]
    small, large = job("same"), job("other", work=replace(WORK, cells=1024))
    wide, fast = job("wide", work=replace(WORK, rows=4)), job("pinned", mode="reproducible", rows=4)
    for entry, joins in ((small, True), (large, False), (wide, True), (fast, False)):
        assert pick([entry], FairState(), replace_room(room, running)) == ([entry.id] if joins else [])
    full = [*running, Running(entry=job("s"), left=5)]
    assert pick([small], FairState(), replace_room(room, full)) == [], "no row is free"


def test_a_job_joins_only_where_none_that_runs_is_late_because_of_it():
    def room(promised_at: float, seconds_of_row: float) -> Room:
        running = [Running(entry=job("r"), left=10, promised_at=promised_at)]
        return Room(running=running, most_rows=lambda entry: 4, step_s=lambda entry, rows, _: seconds_of_row * rows)

    # Together ten steps of four rows take 40 s instead of 20 s.
    assert pick([job("x")], FairState(), room(41.0, 1.0)) == ["x"]
    assert pick([job("x")], FairState(), room(25.0, 1.0)) == []
    # One whose promise is broken already keeps nobody from joining: it is 13.5 s late alone, of 1 s that is allowed.
    assert pick([job("x")], FairState(), room(6.5, 1.0)) == ["x"]
    # Padded rows cost nothing.
    free = Room(
        running=[Running(entry=job("r", mode="reproducible", rows=4), left=10, promised_at=1.0)],
        step_s=lambda entry, rows, _: 1.0,
    )
    assert pick([job("x", mode="reproducible", rows=4)], FairState(), free) == ["x"]


def test_a_long_job_is_not_given_up_because_of_short_ones_that_are_nearly_done():
    """Ten steps of six rows would take 60 s. The short job leaves after one, so that the long one takes 6 + 9 * 2 s, as
    it was promised; another one of four rows, for all of its steps, makes it late."""
    long = Running(entry=job("long"), left=10, promised_at=24.0)
    short = Running(entry=job("short", work=replace(WORK, rows=4)), left=1)
    room = Room(running=[long, short], most_rows=lambda entry: 16, step_s=lambda entry, rows, _: float(rows))
    assert pick([job("x", work=replace(WORK, rows=4))], FairState(), room) == []


def test_a_job_is_held_to_what_was_promised_and_not_to_what_is_said_now():
    room = Room(most_rows=lambda entry: 16, step_s=lambda entry, rows, _: float(rows))
    first = job("first", promised_at=20.0, finish_at=1000.0)
    assert pick([first, job("x", at=1.0)], FairState(), room) == ["first"]
    assert running(first, step=4, steps=10) == Running(entry=first, left=6.0, promised_at=20.0)
    now_running = replace(first, state=JobState.RUNNING)
    device = Device(costs={"m": costs_by_row(1.0)}, models={"m"})
    found = finish_times([now_running, job("x", at=1.0)], {"w": device}, 0.0)
    assert found["first"] == 20.0, "nobody has joined"


def costs_by_row(seconds: float) -> Costs:
    costs = Costs(rows={256: 16})
    for rows in (2, 16):
        costs.learn("denoise", seconds=seconds * rows, cells=256, rows=rows)
    return costs


def test_the_state_goes_through_json():
    state = FairState(served={"a": 2.0}, floor=1.0, usual=0.5)
    assert FairState.from_json(state.to_json()) == state
    assert FairState.from_json({"served": 3}) == FairState()
