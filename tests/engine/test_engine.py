"""The engine as its callers hold it: handles, threads, coroutines, and a bad row that hurts its own request only."""

import asyncio
import gc
import threading
import time
import weakref
from dataclasses import replace

import pytest
import torch

from tests.adapters.lora.files import is_attention, kohya, layers_of, write
from tests.services import fresh_service, service_of
from undertow import Adapter, AdapterCapacity, BatchLimits, GenerationRequest, InvalidInput, NonFiniteError
from undertow.adapters.lora.kind import LoraKind
from undertow.engine.decode import Decoder
from undertow.engine.engine import Engine
from undertow.engine.events import WorkEvent
from undertow.engine.group import Group
from undertow.engine.options import RunOptions
from undertow.engine.request_run import Stage
from undertow.errors import EngineClosed, RequestFailed

FEW = {"sampler": "euler", "sigmas": (10.0, 3.0, 0.0)}
EIGHT = RunOptions(limits=BatchLimits(padded_to=8))
"""Every forward of eight rows, so that a picture is bit-equal whatever shares its batches."""


def asked(seed: int, **settings) -> GenerationRequest:
    return GenerationRequest(**{"prompt": "a", "seed": seed, "guidance_scale": 1.0, **FEW, **settings})


@pytest.fixture
def engine(service):
    return Engine(service.model, adapters=service.adapters)


def test_a_handle_gives_the_pictures_and_runs_the_engine_for_them(engine, service):
    handle = engine.submit(asked(1))
    assert (handle.done, handle.progress.stage) == (False, Stage.WAITING)
    result = handle.result()
    assert torch.equal(result.latents, service.run(asked(1)).latents)
    assert len(result.images) == 1
    assert (handle.done, handle.progress.stage, engine.idle) == (True, Stage.FINISHED, True)
    assert (handle.progress.step, handle.progress.steps) == (1, 2)
    assert handle.result() is result


def test_short_encodings_are_one_unit_of_work(engine, monkeypatch):
    """Requests that come at once share their first step."""
    monkeypatch.setattr("undertow.engine.engine.ENCODE_S", 60.0)
    events: list[WorkEvent] = []
    engine.watchers.append(events.append)
    handles = [engine.submit(asked(seed)) for seed in (1, 2, 3)]
    engine.step()
    assert [one.progress.stage for one in handles] == [Stage.DENOISING] * 3
    engine.step()
    assert (events[-1].kind, events[-1].rows) == ("denoise", 3)


def test_the_budget_holds_in_every_part_of_an_encoding(engine, monkeypatch):
    monkeypatch.setattr("undertow.engine.engine.ENCODE_S", 60.0)
    held, encode = [], Group.encode

    def noted(group, *given):
        held.append(engine.memory.budget_bytes)
        return encode(group, *given)

    monkeypatch.setattr(Group, "encode", noted)
    engine.submit(asked(1), options=RunOptions(budget_bytes=10**12)).result()
    assert held[0] is None, "it is decided there"
    assert set(held[1:]) == {10**12}


def test_a_kind_that_has_no_work_begins_no_unit(engine, monkeypatch):
    begun, own = [], engine.memory.unit
    monkeypatch.setattr(engine.memory, "unit", lambda: begun.append("unit") or own())
    engine.watchers.append(lambda event: begun.append(event.kind))
    engine.submit(asked(1)).result()
    drawn = begun[begun.index("denoise") - 1 :]
    assert drawn == ["unit", "denoise"] * (len(drawn) // 2 - 1) + ["unit", "decode"]


def test_kinds_of_work_take_turns(engine, monkeypatch):
    """While one request is denoised another is encoded and a third decoded: no unit does two things, unless the first
    is short."""
    monkeypatch.setattr("undertow.engine.engine.ENCODE_S", 0.0)
    first = engine.submit(asked(1))
    stages = [(first.progress.stage, first.progress.step)]
    while engine.step():
        stages.append((first.progress.stage, first.progress.step))
    assert stages == [
        (Stage.WAITING, 0),
        (Stage.WAITING, 0),  # adapters
        (Stage.ENCODED, 0),  # text
        (Stage.DENOISING, 0),  # joins
        (Stage.DENOISING, 1),
        (Stage.DECODING, 1),
        (Stage.FINISHED, 1),  # decoded
    ]
    assert not engine.step()


def test_a_request_that_comes_later_shares_the_steps_that_are_left(engine, service):
    first = engine.submit(asked(1, sigmas=(10.0, 8.0, 6.0, 4.0, 2.0, 0.0)), options=EIGHT)
    while first.progress.step < 1:
        engine.step()
    second = engine.submit(asked(2), options=EIGHT)
    engine.run()
    alone = service.generate_many([asked(2)], limits=EIGHT.limits)[0]
    assert torch.equal(second.result().latents, alone.latents)
    assert (first.result().report.rows, second.result().report.rows) == (2, 2)


def test_decoding_comes_between_the_steps_of_others(engine):
    """Three pictures are decoded one at a time: between two of them the longer request makes a step."""
    steps_at_decoding = []
    long = engine.submit(asked(2, sigmas=tuple(float(level) for level in range(12, -1, -1))))
    decode = Decoder.picture

    def noting(decoder, latents, index):
        steps_at_decoding.append(long.progress.step)
        return decode(decoder, latents, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "picture", noting)
        engine.submit(asked(1, count=3)).result()
    assert len(set(steps_at_decoding)) == 3, steps_at_decoding
    long.cancel()


def test_cancelling_before_encoding_gives_an_empty_result(engine):
    handle = engine.submit(asked(1))
    handle.cancel()
    result = handle.result()
    assert result.report.cancelled
    assert (result.images, result.latents.shape[0]) == ([], 0)
    engine.run()
    assert engine.idle


def test_cancelling_in_the_middle_keeps_what_was_reached_and_the_others(engine, service):
    one, other = engine.submit_together([asked(1), asked(2)], options=EIGHT)
    while one.progress.step < 1:
        engine.step()
    one.cancel()
    assert one.done
    assert one.result().report.cancelled
    assert torch.equal(other.result().latents, service.generate_many([asked(2)], limits=EIGHT.limits)[0].latents)


def test_requests_submitted_together_are_refused_together(engine):
    one, other = engine.submit_together([asked(1), asked(2, size=(33, 32))])
    for handle in (one, other):
        with pytest.raises(InvalidInput, match="multiples of 2"):
            handle.result()
    assert one.progress.step == 0
    assert engine.idle


def test_an_observer_may_submit_but_not_wait(engine):
    more, refused = [], []

    def observe(event):
        if event.step == 1:
            more.append(engine.submit(asked(2)))
            try:
                more[0].result()
            except InvalidInput as error:
                refused.append(str(error))

    engine.submit(asked(1), observe).result()
    assert "called inside a unit of work" in refused[0]
    assert len(more[0].result().images) == 1


def test_waiting_can_end(engine):
    handle = engine.submit(asked(1), lambda event: time.sleep(0.05))
    with pytest.raises(TimeoutError):
        handle.result(timeout_s=0.01)
    assert len(handle.result().images) == 1


def test_a_closed_engine_takes_nothing_and_ends_what_waits(service):
    engine = Engine(service.model, adapters=service.adapters)
    handle = engine.submit(asked(1))
    engine.close()
    assert handle.result().report.cancelled
    with pytest.raises(EngineClosed):
        engine.submit(asked(1))
    with pytest.raises(EngineClosed):
        engine.start()


def test_events_are_iterated_where_they_are_made(engine):
    handle = engine.submit(asked(1))
    assert [(event.step, event.steps) for event in handle.events()] == [(0, 2), (1, 2)]
    assert handle.done


def test_coroutines_await_results_and_events_without_threads_of_their_own(service):
    async def serve():
        with Engine(service.model, adapters=service.adapters) as engine:
            one, other = engine.submit(asked(1)), engine.submit(asked(2, count=2))
            steps = [event.step async for event in other.events()]
            first, second = await asyncio.gather(one, other)
            return first, second, steps

    first, second, steps = asyncio.run(serve())
    assert (len(first.images), len(second.images)) == (1, 2)
    assert set(steps) <= {0, 1}


def test_a_coroutine_that_stops_waiting_leaves_the_request_alone(service):
    async def impatient():
        with Engine(service.model, adapters=service.adapters) as engine:
            handle = engine.submit(asked(1), lambda event: time.sleep(0.02))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(handle, 0.001)
            return await handle

    assert len(asyncio.run(impatient()).images) == 1


@pytest.fixture(scope="module")
def loras(service, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    layers = {name: shape for name, shape in layers_of(service.unet).items() if is_attention(name)}
    good, bad = kohya(layers), kohya(layers)
    return {"good": write(folder / "good.safetensors", good), "bad": _with_nan(folder / "bad.safetensors", bad)}


def _with_nan(path, tensors):
    """Finite numbers whose product is not."""
    return write(path, {name: tensor * (1e30 if "lora_" in name else 1) for name, tensor in tensors.items()})


@pytest.mark.slow
def test_four_threads_draw_at_once_each_with_its_own_adapters(loras):
    """Merged adapters change the weights that all share; every thread still gets its own picture."""
    service = fresh_service("sd1")
    adapter = (Adapter(loras["good"]),)
    requests = [asked(seed, adapters=adapter if seed % 2 else ()) for seed in range(4)]
    limits = BatchLimits(padded_to=4)
    expected = [service.generate_many([request], limits=limits)[0].latents for request in requests]
    found: dict[int, list[torch.Tensor]] = {}

    def draw(index: int) -> None:
        found[index] = [service.generate_many([requests[index]], limits=limits)[0].latents for _ in range(3)]

    threads = [threading.Thread(target=draw, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (expected[0] - expected[1]).abs().max() > 0.01
    for index, reference in enumerate(expected):
        assert all(torch.equal(latents, reference) for latents in found[index]), index
    assert service.adapters.kind(LoraKind).merged.present == ()


def healthy(count: int = 5) -> list[GenerationRequest]:
    return [asked(seed) for seed in range(1, count + 1)]


def others_are_untouched(service, handles, requests):
    for handle, request in zip(handles, requests, strict=True):
        alone = service.generate_many([request], limits=EIGHT.limits)[0]
        assert torch.equal(handle.result().latents, alone.latents)


def test_an_adapter_that_gives_nan_fails_its_own_request(loras):
    service = service_of("sd1", capacity=AdapterCapacity(slots=2, rank=4))
    engine, requests = Engine(service.model, adapters=service.adapters), healthy()
    bad = asked(9, adapters=(Adapter(loras["bad"]),))
    *handles, failing = engine.submit_together([*requests, bad], options=EIGHT)
    with pytest.raises(NonFiniteError, match=r"request 5, picture 0, step 0, branch cond"):
        failing.result()
    others_are_untouched(service, handles, requests)


def test_numbers_that_are_none_may_be_kept(loras):
    service = service_of("sd1", capacity=AdapterCapacity(slots=2, rank=4))
    engine = Engine(service.model, adapters=service.adapters)
    kept = engine.submit(
        asked(9, adapters=(Adapter(loras["bad"]),), sigmas=(10.0, 0.0)), options=RunOptions(non_finite="keep")
    )
    with pytest.raises(InvalidInput, match="latents is non-finite"):
        kept.result()  # which the autoencoder refuses


def task_of(engine, number):
    """The task of a request's only picture, as it waits for its first evaluation."""
    run = engine._runs[number]
    engine.run_until(lambda: run.stage is Stage.DENOISING)
    (task,) = run._tasks
    return task


def test_out_of_memory_in_one_row_fails_its_own_request():
    """The allocator gives up as soon as one picture's row is in the batch."""
    service, sizes = fresh_service("sd1"), []
    engine = Engine(service.model, adapters=service.adapters)

    def allocate(module, inputs):
        sizes.append(len(inputs[0]))
        if bool((inputs[1] == 1.0).any()):
            raise torch.OutOfMemoryError("tried to allocate 40.00 GiB")

    service.unet.register_forward_pre_hook(allocate)
    *handles, failing = engine.submit_together([*healthy(), asked(9)])
    task = task_of(engine, 5)
    task.rows = [replace(task.rows[0], timestep=torch.tensor([1.0]))]
    with pytest.raises(RequestFailed, match=r"request 5.*OutOfMemoryError: tried.*smaller picture") as failure:
        failing.result()
    assert failure.value.origin.request == 5
    assert isinstance(failure.value.__cause__, torch.OutOfMemoryError)
    assert sizes[:4] == [6, 6, 3, 3], "without idle networks, then half as many rows"
    assert sizes.count(1) > 4, "down to the row, and in parts of its layers"
    assert all(len(handle.result().images) == 1 for handle in handles)


def test_a_wrong_shape_fails_its_own_request(service):
    engine, requests = Engine(service.model, adapters=service.adapters), healthy()
    *handles, failing = engine.submit_together([*requests, asked(9)], options=EIGHT)
    task = task_of(engine, 5)
    object.__setattr__(task.rows[0], "timestep", torch.tensor([1.0, 2.0]))  # past the checks of annotations
    with pytest.raises((RequestFailed, InvalidInput)) as refusal:  # the first where annotations are checked
        failing.result()
    assert "request 5" in " ".join((str(refusal.value), *getattr(refusal.value, "__notes__", ())))
    others_are_untouched(service, handles, requests)


def test_a_finished_handle_holds_nothing_but_its_result(engine):
    handle = engine.submit(asked(1))
    while handle.progress.stage is not Stage.DENOISING:
        engine.step()
    (task,) = handle._run._tasks
    rows = [weakref.ref(row) for row in task.rows]
    del task
    handle.result()
    gc.collect()
    assert [row() for row in rows] == [None]


def test_who_stops_iterating_is_not_told_any_more(engine):
    """Its event loop may be closed by then, which must not fail the request."""
    handle = engine.submit(asked(1, sigmas=(10.0, 8.0, 6.0, 4.0, 2.0, 0.0)))

    async def first_step():
        async for event in handle.events():
            return event.step
        return None

    assert asyncio.run(first_step()) == 0
    for event in handle.events():
        assert event.step > 0
        break
    assert len(handle.result().images) == 1
    assert handle._run.observers == []


def test_an_interruption_while_weights_are_put_back_leaves_the_service_usable(monkeypatch):
    service = fresh_service("sd1")
    unmerge = service.adapters.unmerge

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(service.adapters, "unmerge", interrupted)
    with pytest.raises(KeyboardInterrupt):
        service.run(asked(1))
    monkeypatch.setattr(service.adapters, "unmerge", unmerge)
    assert torch.equal(service.run(asked(1)).latents, service_of("sd1").run(asked(1)).latents)


def test_an_observer_that_ends_its_thread_ends_its_own_request_alone(service, caplog):
    def leave(event):
        raise SystemExit

    async def serve():
        with Engine(service.model, adapters=service.adapters) as engine:
            leaving = engine.submit(asked(1), leave)
            with pytest.raises(RequestFailed, match="request 0: SystemExit"):
                await asyncio.wait_for(leaving, 60)
            return await asyncio.wait_for(engine.submit(asked(2)), 60)

    assert len(asyncio.run(serve()).images) == 1
    assert "the engine goes on" in caplog.text


def test_what_is_wrong_with_one_of_several_is_its_own_where_that_is_asked_for(engine, service):
    options = [EIGHT, RunOptions(limits=BatchLimits(padded_to=4)), EIGHT]
    one, bad, other = engine.submit_together([asked(1), asked(2, size=(33, 32)), asked(3)], options=options, apart=True)
    assert torch.equal(other.result().latents, service.generate_many([asked(3)], limits=EIGHT.limits)[0].latents)
    assert one.result().report.rows == 2, "they share from the first forward on"
    with pytest.raises(InvalidInput, match="33"):
        bad.result()


def test_a_request_that_is_cancelled_while_it_is_encoded_leaves_nothing_to_the_next(engine, service):
    one, other = engine.submit_together([asked(1), asked(2, prompt="red apple")], options=EIGHT)
    engine.step()
    one.cancel()
    expected = service.generate_many([asked(2, prompt="red apple")], limits=EIGHT.limits)[0]
    assert torch.equal(other.result().latents, expected.latents)


def test_cancelled_requests_leave_the_weights_as_they_were(loras, monkeypatch):
    monkeypatch.setattr("undertow.engine.engine.ENCODE_S", 0.0)
    service = fresh_service("sd1")
    before = {name: weight.clone() for name, weight in service.unet.state_dict().items()}
    engine = service.engine
    handle = engine.submit(asked(1, count=2, adapters=(Adapter(loras["good"]),)))
    waiting = engine.submit(asked(2))
    while not engine._decoding:
        engine.step()
    assert any(not torch.equal(weight, before[name]) for name, weight in service.unet.state_dict().items())
    handle.cancel()
    waiting.cancel()
    assert engine.idle
    assert all(torch.equal(weight, before[name]) for name, weight in service.unet.state_dict().items())
    assert engine._runs == []


def test_out_of_memory_in_encoding_or_decoding_fails_its_own_request(monkeypatch):
    service = fresh_service("sd1")
    encode, decode = type(service.model.text).encode_steps, Decoder.picture
    calls = []

    def failing(work, fails):
        def run(*arguments, **named):
            if fails(*arguments):
                raise torch.OutOfMemoryError("tried to allocate 40.00 GiB")
            return work(*arguments, **named)

        return run

    def read(*_):
        calls.append(1)
        return len(calls) in (3, 4)  # the second request's prompt, again after what was idle has left

    monkeypatch.setattr(type(service.model.text), "encode_steps", failing(encode, read))
    monkeypatch.setattr(Decoder, "picture", failing(decode, lambda decoder, *_: decoder.request.seed == 1))
    one, two, three = service.engine.submit_together([asked(1), asked(2), asked(3)], numbers=(0, 1, 2))
    with pytest.raises(RequestFailed, match=r"request 1, while it was encoded.*40.00 GiB, also with less.*; draw a"):
        two.result()
    with pytest.raises(RequestFailed, match=r"request 0, picture 0, while it was decoded"):
        one.result()
    assert len(three.result().images) == 1


def test_events_are_iterated_once_and_a_closed_loop_hurts_nobody(engine):
    handle = engine.submit(asked(1, sigmas=(10.0, 8.0, 6.0, 4.0, 2.0, 0.0)))
    events, loop = handle.events(), asyncio.new_event_loop()
    steps = aiter(events)
    assert loop.run_until_complete(anext(steps)).step == 0
    loop.close()
    assert len(handle.result().images) == 1
    with pytest.raises(InvalidInput, match="iterated a second time"):
        next(iter(events))
    engine.close()
