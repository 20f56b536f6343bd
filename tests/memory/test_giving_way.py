"""Requests that run out of memory go on with less, say how, and have the bytes of the same course drawn anew."""

import re

import pytest
import torch

import undertow
from tests.adapters.lora.files import is_attention, kohya, layers_of, write
from tests.services import fresh_service, pipeline_folder, service_of
from undertow import GenerationRequest, OutOfMemory, RequestFailed, RunOptions
from undertow.engine import decode as decoding
from undertow.engine.engine import Engine
from undertow.engine.memory_of_request import economy_of
from undertow.errors import InvalidInput
from undertow.memory import keeper as keeping_memory
from undertow.memory.keeper import Keeper
from undertow.memory.ladder import Economy
from undertow.memory.work import Work
from undertow.shortage import size_in_words

ASKED = GenerationRequest(prompt="a cat", steps=2, count=2, seed=5, size=(32, 32))


def pictures(result):
    return [image.tobytes() for image in result.images]


@pytest.fixture
def service():
    return fresh_service("sd1")


def keeping(service, others_bytes=0):
    """An engine whose budgets count its own tensors alone, so that they are the same on every machine."""
    keeper = Keeper(service.model, before_eviction=service.adapters.unmerge, others_bytes=others_bytes)
    return Engine(service.model, adapters=service.adapters, memory=keeper)


def run(engine, **options):
    return engine.submit(ASKED, options=RunOptions(**options)).result()


def test_low_vram_keeps_what_works_and_nothing_else(service):
    expected = pictures(service.run(ASKED))
    seen = []
    service.model.unet.register_forward_pre_hook(lambda *_: seen.append(service.engine.memory.residency.present))
    result = service.run(ASKED, low_vram=True)
    assert pictures(result) == expected, "to the bit"
    assert set(seen) == {("unet",)}
    assert service.engine.memory.residency.present == ("vae",)
    assert result.report.memory.evictions == 4, "text and U-Net come and go once, also for several pictures"
    assert pictures(service.run(ASKED)) == expected
    assert service.engine.memory.residency.present == ("unet", "vae", "text"), "without a budget all stay"


def fails_beyond(service, engine, *, rows, chunks=1, layers=1.0):
    """Forwards run out of memory that are larger than this; returns what was tried."""
    tried, component = [], engine.memory.residency._components["unet"]
    size = sum(one.nbytes for one in service.model.unet.parameters())
    block = next(one for name, one in service.model.unet.named_modules() if name.endswith("transformer_blocks.0"))
    tokens = {}

    def enter(module, inputs):
        tokens["rows"] = len(inputs[0])
        if len(inputs[0]) > rows:
            tried.append(len(inputs[0]))
            raise torch.OutOfMemoryError("tried to allocate 40.00 GiB")

    def feed_forward(module, inputs):
        if inputs[2] < chunks or component.present_bytes > layers * size:
            tried.append((inputs[2], component.present_bytes <= layers * size))
            raise torch.OutOfMemoryError("tried to allocate 40.00 GiB")

    service.model.unet.register_forward_pre_hook(enter)
    block.ff.register_forward_pre_hook(feed_forward)
    return tried


def test_it_goes_down_step_by_step_and_the_course_repeats_it(service):
    engine = keeping(service)
    tried = fails_beyond(service, engine, rows=1, chunks=2, layers=0.5)
    result = run(engine)
    # Two pictures with guidance are four rows.
    assert tried == [4, 4, 2, (1, False), (2, False), (4, False), (8, False)]
    memory = result.report.memory
    assert memory.economy == Economy(evict_idle=True, rows=1, feed_forward_chunks=8, offloaded_layers=True)
    assert [step.unit for step in memory.course] == [0] * 7
    said = "a forward of 4 rows ran out of memory (tried to allocate 40.00 GiB): idle networks leave memory"
    assert str(memory.course[0]) == said
    assert said in result.report.decisions
    again = undertow.load(pipeline_folder("sd1"), dtype=torch.float32).run(ASKED, course=memory.course)
    assert pictures(again) == pictures(result)
    assert again.report.memory.course == memory.course


def test_running_out_in_the_middle_keeps_the_steps_before(service):
    engine, calls = keeping(service), []

    def enter(module, inputs):
        calls.append(len(inputs[0]))
        if len(calls) > 1 and len(inputs[0]) > 1:
            raise torch.OutOfMemoryError("tried to allocate 40.00 GiB")

    service.model.unet.register_forward_pre_hook(enter)
    result = run(engine)
    assert calls[:5] == [4, 4, 4, 2, 1], "the first step once, the second again and again"
    assert len(calls) == 4 + 4
    assert {step.unit for step in result.report.memory.course} == {2}, "after both pictures' first step"
    again = undertow.load(pipeline_folder("sd1"), dtype=torch.float32).run(ASKED, course=result.report.memory.course)
    assert pictures(again) == pictures(result)


def test_only_the_request_for_which_nothing_is_left_fails_with_the_numbers(service):
    engine = keeping(service)
    options = RunOptions(budget_bytes=10)
    failing = engine.submit(ASKED, options=options)
    with pytest.raises(RequestFailed, match=r"BudgetMemoryError: tried to allocate .* with a budget of 10 bytes"):
        failing.result()
    assert len(run(engine).images) == 2, "the engine goes on"


def test_a_budget_is_kept_by_counting(service):
    engine = keeping(service)
    whole = run(engine, budget_bytes=2**40).report.memory
    assert whole.course == ()
    assert whole.budget_bytes == 2**40
    budget = int(0.95 * whole.tensors_bytes)
    less = run(engine, budget_bytes=budget)
    assert less.report.memory.tensors_bytes <= budget
    assert less.report.memory.evictions > 0
    again = undertow.load(pipeline_folder("sd1"), dtype=torch.float32).run(ASKED, course=less.report.memory.course)
    assert pictures(again) == pictures(less)
    assert engine.memory.tracker.live_bytes < 2**20


def test_decoding_goes_down_to_tiles(service, monkeypatch):
    engine, asked = keeping(service), []

    def decode(vae, latents, *, budget_bytes, **how):
        asked.append(budget_bytes)
        if budget_bytes is None:
            raise torch.OutOfMemoryError("tried to allocate 40.00 GiB")
        return original(vae, latents, budget_bytes=budget_bytes, **how)

    original = decoding.decode_safely
    monkeypatch.setattr(decoding, "decode_safely", decode)
    one = GenerationRequest(prompt="a cat", steps=1, seed=5, size=(128, 128))
    result = engine.submit(one).result()
    assert asked[:2] == [None, None]
    assert None not in asked[2:]
    assert len(result.images) == 1
    assert result.report.memory.economy.decode_bytes == asked[2]


def test_what_leaves_is_not_merged_into(service, tmp_path):
    """A LoRA that is merged while networks come and go changes the pictures as it does without."""
    layers = {name: shape for name, shape in layers_of(service.model.unet).items() if is_attention(name)}
    path = write(tmp_path / "style.safetensors", kohya(layers))
    adapted = GenerationRequest(
        prompt="a cat", steps=2, seed=5, size=(32, 32), adapters=(undertow.Adapter(source=path),)
    )
    plain, expected = pictures(service.run(ASKED)), pictures(service.run(adapted))
    assert pictures(service.run(adapted, low_vram=True)) == expected
    assert pictures(service.run(ASKED, low_vram=True)) == plain


def test_every_request_reports_its_peak():
    memory = service_of("sd1").run(ASKED).report.memory
    if not memory.peaks:
        pytest.skip("nobody tells here")
    assert set(memory.peaks) == {"text", "denoise", "decode"}
    assert memory.peak_bytes == max(memory.peaks.values()) > 2**24
    assert (memory.budget_bytes, memory.course, memory.economy) == (None, (), Economy())


def test_a_budget_below_the_smallest_plan_says_the_smallest(service, monkeypatch):
    monkeypatch.setattr(keeping_memory, "PROCESS_BYTES", 2**40)  # whatever else the tests' process holds
    smallest = service.plan(size=(32, 32), batch=2, steps=2, budget_bytes=1).smallest_bytes
    said = re.escape(f"a picture of 32x32 needs at least {size_in_words(smallest)} of memory; its budget is 1.0 MB")
    with pytest.raises(OutOfMemory, match=said) as refusal:
        service.run(ASKED, budget_bytes=10**6)
    assert refusal.value.needed_bytes == smallest
    assert service.engine.memory.residency.evictions == 0, "nothing was begun"


def test_other_models_in_the_process_count(service, monkeypatch):
    """Here everything that the process holds but this model, since what every process takes is said to be nothing."""
    monkeypatch.setattr(keeping_memory, "PROCESS_BYTES", 0)
    smallest = service.plan(size=(32, 32), batch=2, steps=2, budget_bytes=1).smallest_bytes
    with pytest.raises(OutOfMemory, match="of which what else is in memory takes") as refusal:
        service.run(ASKED, budget_bytes=smallest)
    assert refusal.value.needed_bytes > smallest + 2**26


def test_what_comes_between_two_units_of_work_counts_from_the_next_on(service):
    keeper = Keeper(service.model)
    if keeper._memory.in_use() is None:
        pytest.skip("nobody tells here")
    keeper.govern(10**9, sparing=False)
    with keeper.unit():
        before = keeper.tracker.limit_bytes
    another_model = torch.ones(2**24)
    with keeper.unit():
        less = before - keeper.tracker.limit_bytes
    keeper.govern(None, sparing=False)
    assert 0.8 * another_model.nbytes < less < 1.3 * another_model.nbytes


def test_a_plan_is_what_is_done_from_the_beginning():
    given = {"attention_in_parts": True, "feed_forward_chunks": 2, "offloaded_layers": True, "decode_bytes": 2**25}
    assert economy_of(Work(rows=1, keep=(), **given), 2) == Economy(evict_idle=True, rows=1, **given)
    assert economy_of(Work(rows=2), 2) == Economy()


def test_a_budget_is_a_number_of_bytes():
    with pytest.raises(InvalidInput, match="budget_bytes is 0, expected a number of bytes, at least 1"):
        RunOptions(budget_bytes=0)
    with pytest.raises(InvalidInput, match="budget_bytes is True"):
        RunOptions(budget_bytes=True)


@pytest.mark.parametrize("reached", ["model", "networks"])
def test_networks_that_a_caller_reaches_are_in_memory_and_stay(service, reached):
    """After a request in which they left one after the other, whichever comes first, and for a model never read."""
    before = {name: tensor.clone() for name, tensor in service.model.unet.state_dict().items()}
    service.run(ASKED, low_vram=True)
    assert service.engine.memory.residency.present == ("vae",)
    if reached == "model":
        unet, vae, text = service.model.unet, service.model.vae, service.model.text.encoders[0]
        assert not any(parameter.isnan().any() for parameter in text.parameters())
    else:
        unet, vae = service.unet, service.vae
    assert all(torch.equal(before[name], tensor) for name, tensor in unet.state_dict().items())
    assert not any(parameter.isnan().any() for parameter in vae.parameters())


def test_two_engines_may_share_a_model_in_turns(service):
    """Both know what the other let go."""
    expected, other = pictures(service.run(ASKED)), Engine(service.model, adapters=service.adapters)
    assert pictures(other.submit(ASKED).result()) == expected
    assert pictures(service.run(ASKED, low_vram=True)) == expected
    assert pictures(other.submit(ASKED).result()) == expected
