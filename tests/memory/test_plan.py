"""Plans: what gives way, in which order, and that nothing does without need."""

import json
from dataclasses import replace

import pytest

from tests.services import service_of
from undertow.errors import InvalidInput
from undertow.memory.families import CLIP_L
from undertow.memory.forecast import component_bytes, forecast
from undertow.memory.measures import candidates
from undertow.memory.plan import plan, read_bytes
from undertow.memory.seconds import SecondsTable, spelled
from undertow.memory.work import Subject, VAENetwork, Work
from undertow.unet.config import CrossAttention, Level, UNetConfig

SUBJECT = Subject(
    name="small",
    unet=UNetConfig(
        levels=(Level(channels=320, resnets=1, attention=CrossAttention(heads=8)), Level(channels=640, resnets=1)),
        context_dim=768,
    ),
    vae=VAENetwork(level_channels=(96, 128, 128, 128), resnets=1),
    text_encoders=(CLIP_L,),
)
"""Everything that SD1.5 has, in fewer layers, so that its forecasts take no time."""

WORK = Work(size=(512, 512), pictures=2, dtype="float16")
GIVES_WAY = {
    "idle": "keep",
    "rows": "rows",
    "attention": "attention_in_parts",
    "feed-forward": "feed_forward_chunks",
    "layers": "offloaded_layers",
    "tiles": "decode_bytes",
}
"""By a kind of measure, in the order of giving way, the field of `Work` that says it."""


def process_bytes(work: Work) -> int:
    return forecast(SUBJECT, work).process_bytes


def test_without_a_budget_nothing_gives_way():
    found = plan(SUBJECT, WORK)
    assert (found.fits, found.measures, found.work, found.budget_bytes) == (True, (), WORK, None)
    assert found.process_bytes == found.asked_bytes == process_bytes(WORK)
    assert found.peak_bytes == max(stage.weight_bytes + stage.activation_bytes for stage in found.stages)
    assert found.smallest_bytes < found.asked_bytes


def test_a_budget_that_suffices_takes_nothing():
    found = plan(SUBJECT, WORK, process_bytes(WORK))
    assert (found.fits, found.measures) == (True, ())


@pytest.mark.parametrize("part", [0.02, 0.25, 0.5, 0.75, 0.98])
@pytest.mark.parametrize("work", [WORK, replace(WORK, size=(1024, 1024), kernel="math")])
def test_what_gives_way_is_what_is_needed_in_the_order_of_the_issue(part, work):
    """Idle models first, then fewer rows, then attention and layers in parts, then layers one by one, then tiles."""
    free = plan(SUBJECT, work)
    budget = free.smallest_bytes + round(part * (free.asked_bytes - free.smallest_bytes))
    found = plan(SUBJECT, work, budget)
    assert found.fits
    assert process_bytes(found.work) == found.process_bytes <= budget
    kinds = [name for name, field in GIVES_WAY.items() if getattr(found.work, field) != getattr(work, field)]
    offered = {one.name: one.kind for one in candidates(SUBJECT, work, 2**31)}
    assert [offered[measure.name] for measure in found.measures] == kinds
    assert kinds
    for kind in kinds:  # without any one of them it would not fit
        fewer = replace(found.work, **{GIVES_WAY[kind]: getattr(work, GIVES_WAY[kind])})
        assert process_bytes(fewer) > budget


def test_compiled_graphs_keep_their_kernels_and_layers():
    work = replace(WORK, size=(1024, 1024), kernel="math")
    eager, compiled = plan(SUBJECT, work), plan(SUBJECT, work, fixed_graphs=True)
    assert eager.smallest_bytes < compiled.smallest_bytes < eager.asked_bytes == compiled.asked_bytes
    least = plan(SUBJECT, work, compiled.smallest_bytes, fixed_graphs=True).work
    changed = {kind for kind, field in GIVES_WAY.items() if getattr(least, field) != getattr(work, field)}
    assert changed <= {"idle", "rows", "tiles"}


def test_nothing_changes_the_picture_unless_it_is_asked_for():
    found = plan(SUBJECT, WORK, plan(SUBJECT, WORK).smallest_bytes)
    same = {name: getattr(WORK, name) for name in GIVES_WAY.values()}
    assert found.measures
    assert replace(found.work, **same) == WORK
    assert not any(measure.changes_picture for measure in found.measures)


def test_below_the_smallest_plan_the_answer_is_no_with_the_numbers():
    smallest = plan(SUBJECT, WORK).smallest_bytes
    found = plan(SUBJECT, WORK, smallest - 1)
    assert (found.fits, found.smallest_bytes) == (False, smallest)
    assert found.process_bytes >= smallest
    assert plan(SUBJECT, WORK, smallest).fits
    with pytest.raises(InvalidInput, match="budget_bytes is 0, expected at least 1"):
        plan(SUBJECT, WORK, 0)


def test_measures_say_what_each_saves():
    found = plan(SUBJECT, WORK, plan(SUBJECT, WORK).smallest_bytes)
    before = WORK
    for measure in found.measures:
        whole = forecast(SUBJECT, before).peak_bytes - forecast(SUBJECT, measure.work).peak_bytes
        one = forecast(SUBJECT, before).stage(measure.stage), forecast(SUBJECT, measure.work).stage(measure.stage)
        assert measure.saved_bytes == (whole or one[0].peak_bytes - one[1].peak_bytes) > 0
        before = measure.work
    assert before == found.work


def test_seconds_are_those_of_the_operations():
    """With a table in which every call takes a microsecond: their number, times the steps, for each picture."""
    stages = [stage for stage in forecast(SUBJECT, WORK).stages if stage.name != "encode"]
    operations = {spelled(signature) for stage in stages for signature in stage.operations}
    table = SecondsTable(seconds={"float16": dict.fromkeys(operations, 1e-6)})
    calls = sum(sum(stage.operations.values()) * stage.calls for stage in stages)
    found = plan(SUBJECT, WORK, table=table)
    assert found.seconds == pytest.approx(calls * 1e-6 / 2)
    step = next(stage for stage in found.stages if stage.name == "denoise")
    assert step.seconds == pytest.approx(20 * sum(step.operations.values()) * 1e-6)
    assert plan(SUBJECT, WORK, table=SecondsTable()).seconds is None
    assert plan(SUBJECT, replace(WORK, dtype="float32"), table=table).seconds is None


def test_measures_say_how_much_slower_they_are():
    """Reading weights again, at a second for each megabyte, where no other operation takes any time."""
    smallest = plan(SUBJECT, WORK, plan(SUBJECT, WORK).smallest_bytes)
    works = [WORK, *(measure.work for measure in smallest.measures)]
    stages = [stage for work in works for stage in forecast(SUBJECT, work).stages]
    operations = {spelled(one) for stage in stages for one in stage.operations}
    table = SecondsTable(seconds={"float16": {**dict.fromkeys(operations, 0.0), "read": 1.0}})
    held = component_bytes(SUBJECT, WORK)
    found = plan(SUBJECT, WORK, smallest.smallest_bytes, table=table)
    slower = {measure.name: measure.slower for measure in found.measures}
    assert slower["every network released while it is idle"] == pytest.approx(sum(held.values()) / 1e6)
    assert slower["exact tiles of the VAE"] == 0
    streamed = replace(WORK, keep=(), rows=1, offloaded_layers=True)
    assert read_bytes(SUBJECT, streamed) == held["text"] + held["vae"] + 20 * 2 * 2 * held["unet"]
    assert read_bytes(SUBJECT, replace(streamed, keep=WORK.keep)) == 20 * 2 * 2 * held["unet"]


def test_plans_are_records_that_json_has():
    found = plan(SUBJECT, WORK, plan(SUBJECT, WORK).smallest_bytes)
    read = json.loads(json.dumps(found.to_json()))
    assert read["process_bytes"] == found.process_bytes
    assert [one["saved_bytes"] for one in read["measures"]] == [one.saved_bytes for one in found.measures]
    assert read["stages"][0]["hotspot"]["module"] == found.stages[0].hotspot.module


def test_a_service_plans_with_its_own_networks():
    service = service_of("sd1")
    found = service.plan(size=(64, 48), batch=3, budget_bytes=10**12)
    weights = sum(parameter.nbytes for parameter in service.unet.parameters())
    step = next(stage for stage in found.stages if stage.name == "denoise")
    assert step.weight_bytes >= weights
    assert (found.work.size, found.work.pictures, found.work.dtype) == ((64, 48), 3, "float32")
    cells = service.config.sample_size * service.vae.config.factor
    assert service.plan().work.size == (cells, cells)
    assert service.plan(guidance=False).work.branches == 1


def test_a_service_refuses_what_it_could_not_draw():
    service = service_of("sd1")
    factor = service.vae.config.factor
    for arguments, words in (
        ({"size": (factor * 8 + 1, factor * 8)}, rf"size is .*multiples of {factor} pixels.*the nearest is"),
        ({"batch": 0}, "batch is 0, expected at least 1"),
        ({"steps": 0}, "steps is 0, expected at least 1"),
        ({"budget_bytes": -1}, "budget_bytes is -1"),
        ({"size": 64}, "size is 64"),
    ):
        with pytest.raises(InvalidInput, match=words):
            service.plan(**arguments)
