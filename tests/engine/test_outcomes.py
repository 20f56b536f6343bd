"""A request goes on from the log of its outcomes: the same bits as undisturbed, and nothing computed twice."""

import random
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.adapters.lora.files import is_attention, kohya, layers_of, write
from tests.engine.test_denoise import photo, right_half
from tests.few import few
from tests.services import service_of
from undertow import (
    Adapter,
    AdapterCapacity,
    BatchLimits,
    GenerationRequest,
    HighResolution,
    InvalidInput,
    Region,
    StepForecast,
    UNetService,
    Views,
)
from undertow.engine import decode, denoise, forward
from undertow.engine.engine import Engine
from undertow.engine.events import WorkEvent
from undertow.engine.options import RunOptions
from undertow.engine.outcome_records import DTYPES, MAGIC, Answered, Begun, framed, records
from undertow.engine.outcomes import OutcomeLog
from undertow.engine.saving import encoded
from undertow.memory.ladder import Economy, StepDown
from undertow.sampling.catalogue import SAMPLERS
from undertow.vae.precision import decode_safely

SIX = RunOptions(limits=BatchLimits(padded_to=6))
"""Every forward of six rows, so that a picture is bit-equal whatever shares its batches."""

COMMON = {"prompt": "a", "steps": 3, "seed": 5, "schedule": "karras", "size": 16}

HALVES = (Region(prompt="b", box=(0, 0, 0.5, 1)), Region(prompt="c", box=(0.5, 0, 1, 1), weight=2.0))

KINDS = {
    "three pictures": {"count": 3, "sampler": "euler_ancestral"},
    "cancelled guidance": {"guidance_scale": 1.0},
    "image to image": {"image": photo(), "strength": 0.7, "size": 32},
    "nothing to draw": {"image": photo(), "strength": 0.0, "size": 32},
    "inpainting": {"image": photo(), "mask": right_half(), "strength": 1.0, "sampler": "heun", "size": 32},
    "second pass by the VAE": {"high_resolution": HighResolution(scale=1.5, strength=0.7), "sampler": "dpmpp_sde"},
    "second pass of latents": {
        "high_resolution": HighResolution(scale=1.5, strength=0.7, upscale="latent"),
        "count": 2,
    },
    "views": {"size": (16, 48), "views": Views(overlap=0.5)},
    "regions": {"regions": HALVES},
    "regions by attention": {"regions": HALVES, "regions_by": "attention"},
    "perturbed attention": {"guidance_method": "cfg+pag(scale=2)", "sampler": "dpmpp_2m_sde"},
    "self-attention guidance": {"guidance_method": "cfg+sag"},
    "momentum": {"guidance_method": "apg(momentum=-0.5)+rescale", "sampler": "dpmpp_3m_sde"},
    "CFG++": {"sampler": "euler_cfg_pp", "guidance_scale": 1.4},
    "variation, seamless": {"variation_seed": 9, "variation_strength": 0.3, "seamless": "both"},
    "forecast steps": {"forecast_steps": StepForecast(first=2), "steps": 6, "sampler": "dpmpp_2m_sde"},
    "two prompts": {"prompt": "a AND b :0.6"},
}


def requests_of(kinds: Mapping[str, Mapping[str, object]]) -> dict[str, GenerationRequest]:
    return {name: GenerationRequest.from_json(COMMON | dict(fields)) for name, fields in kinds.items()}


@dataclass
class Drawn:
    """What came of requests that were drawn at once. logs: what their sinks were given. rows: that were computed."""

    latents: list[Tensor]
    logs: list[bytearray]
    rows: int
    replayed: int


def engine_over(service: UNetService, **settings: object) -> Engine:
    computing = service.engine.computing  # which files carry
    return Engine(service.model, service.refiner, service.adapters, computing=computing, **settings)


def draw(
    service: UNetService,
    requests: Sequence[GenerationRequest],
    before: Sequence[bytes] | None = None,
    options: RunOptions = SIX,
    others: Sequence[GenerationRequest] = (),
) -> Drawn:
    """Draws all in one fresh engine, each with a log. before: the bytes that each log holds already. others: that share
    their forwards."""
    events: list[WorkEvent] = []
    engine = engine_over(service, watchers=[events.append])
    before = [b""] * len(requests) if before is None else before
    buffers = [bytearray() for _ in requests]
    logs = [
        OutcomeLog.read(data, engine.fingerprint(request, options=options), buffer.extend)
        for request, data, buffer in zip(requests, before, buffers, strict=True)
    ]
    for log, data, buffer in zip(logs, before, buffers, strict=True):
        buffer.extend(data[: log.whole_bytes])
    company = [engine.submit(request, options=options) for request in others]
    handles = engine.submit_together(requests, options=options, outcomes=logs)
    engine.run()
    results = [handle.result() for handle in handles]
    assert all(handle.done for handle in company)
    own = {handle.number for handle in handles}
    return Drawn(
        latents=[result.latents for result in results],
        logs=buffers,
        rows=sum(event.rows for event in events if event.kind == "denoise" and own & set(event.requests)),
        replayed=sum(result.report.replayed_rows for result in results),
    )


def assert_resumes(
    service: UNetService, requests: Mapping[str, GenerationRequest], chance: random.Random, options: RunOptions = SIX
) -> None:
    """Every request is killed at a random byte of its log and goes on in another engine beside others."""
    asked = list(requests.values())
    undisturbed = draw(service, asked, options=options)
    kept = [bytes(log[: chance.randrange(len(log) + 1)]) for log in undisturbed.logs]
    resumed = draw(service, asked, kept, options)
    for name, one, other in zip(requests, undisturbed.latents, resumed.latents, strict=True):
        assert torch.equal(one, other), name
    assert resumed.rows == undisturbed.rows - resumed.replayed
    assert [len(log) for log in resumed.logs] == [len(log) for log in undisturbed.logs]


@pytest.fixture
def chance(request) -> random.Random:
    return random.Random(request.node.name)


@pytest.mark.parametrize("every", few([6, 1], 1))
def test_samplers_go_on_where_they_were(service, chance, every):
    """One of every six, and all of them."""
    path = type(service.model.schedule.path)
    fitting = [name for name, entry in SAMPLERS.items() if path in entry.paths and not entry.inverse]
    assert len(fitting) > 40
    coarse = {"sampler_options": {"rtol": 1.0, "h_init": 0.5}}  # of adaptive ones, which otherwise take 90 evaluations
    samplers = {
        name: {"sampler": name, "guidance_scale": 1.4 if "cfg_pp" in name else 1.0, "size": 8}
        | (coarse if "adaptive" in name else {})
        for name in fitting[::every]
    }
    assert_resumes(service, requests_of(samplers), chance, RunOptions(limits=BatchLimits(padded_to=24)))


def test_every_kind_of_request_goes_on_where_it_was(service, chance):
    assert_resumes(service, requests_of(KINDS), chance)


def test_a_refiner_goes_on_where_it_was(chance):
    kinds = {"both": {"refiner_switch": 0.5, "high_resolution": HighResolution(scale=1.5, strength=0.7)}}
    assert_resumes(service_of("sdxl", refiner="refiner"), requests_of(kinds), chance)


@pytest.fixture(scope="module")
def lora(service, tmp_path_factory) -> Path:
    shapes = {name: shape for name, shape in layers_of(service.unet).items() if is_attention(name)}
    return write(tmp_path_factory.mktemp("lora") / "one.safetensors", kohya(shapes))


def test_lora_in_slots_and_merged_go_on_where_they_were(lora, chance):
    kinds = {
        "in a slot": {"adapters": (Adapter(lora, scale=(0.2, 1.0), residency="banked"),)},
        "merged": {"adapters": (Adapter(lora, residency="merged"),)},
        "none": {},
        "in a region": {"regions": (Region(prompt="b", box=(0, 0, 0.5, 1), adapters=(Adapter(lora),)),)},
    }
    banked = service_of("sd1", capacity=AdapterCapacity(slots=4, rank=16, per_row=2))
    assert_resumes(banked, requests_of(kinds), chance)


@pytest.fixture(scope="module")
def asked() -> GenerationRequest:
    return requests_of({"two": {"count": 2, "sampler": "euler_ancestral"}})["two"]


@pytest.fixture(scope="module")
def undisturbed(service, asked) -> Drawn:
    return draw(service, [asked])


def resumed_from(service: UNetService, request: GenerationRequest, data: bytes, options: RunOptions = SIX):
    """The result of a request with such a log, and the events that its observer saw."""
    engine, seen = engine_over(service), []
    log = OutcomeLog.read(data, engine.fingerprint(request, options=options))
    return engine.submit(request, seen.append, options=options, outcomes=log).result(), seen


def test_a_log_changes_no_bit_of_a_picture_or_its_file(service, asked, undisturbed):
    alone = service.generate_many([asked], limits=SIX.limits)[0]
    assert torch.equal(undisturbed.latents[0], alone.latents)
    log = bytes(undisturbed.logs[0])
    resumed, _ = resumed_from(service, asked, log[: len(log) // 2])
    assert resumed.report.replayed_rows > 0
    for index in range(2):
        file = Path("picture.png")
        assert encoded(resumed.images[index], file, resumed.report, index) == encoded(
            alone.images[index], file, alone.report, index
        )


def test_what_shares_its_forwards_after_the_crash_is_of_no_importance(service, asked, undisturbed):
    log, others = bytes(undisturbed.logs[0]), requests_of({name: KINDS[name] for name in ("momentum", "regions")})
    resumed = draw(service, [asked], [log[: len(log) // 3]], others=list(others.values()))
    assert torch.equal(resumed.latents[0], undisturbed.latents[0])
    assert resumed.replayed > 0


def test_without_a_fixed_number_of_rows_it_is_the_same_picture_within_rounding(service, asked):
    free = RunOptions()
    whole = draw(service, [asked], options=free)
    log = bytes(whole.logs[0])
    resumed = draw(
        service, [asked], [log[: len(log) // 2]], free, others=list(requests_of({"one": {"seed": 9}}).values())
    )
    assert resumed.replayed > 0
    assert torch.allclose(resumed.latents[0], whole.latents[0], rtol=0, atol=1e-4)


def test_a_whole_log_calls_no_network(service, asked, undisturbed):
    resumed = draw(service, [asked], [bytes(undisturbed.logs[0])])
    assert torch.equal(resumed.latents[0], undisturbed.latents[0])
    assert (resumed.rows, resumed.replayed) == (0, undisturbed.rows)


def test_half_precision_is_recorded_as_it_is(chance):
    half = service_of("sd1", torch.bfloat16)
    assert_resumes(half, requests_of({"one": {}, "sag": {"guidance_method": "cfg+sag"}}), chance)


def test_the_report_and_the_observer_are_told_where_it_goes_on(service, undisturbed, asked):
    one = replace(asked, count=1)
    log = bytes(draw(service, [one]).logs[0])
    result, events = resumed_from(service, one, log[:-500])  # without the last row, of two in a step
    assert [event.step for event in events] == [2]
    assert events[0].denoised is not None
    assert (result.report.replayed_rows, result.report.replayed_steps) == (5, 2)
    assert "resumed at step 2 of 3, by 5 recorded rows" in result.report.decisions
    assert not any("resumed" in line for line in resumed_from(service, one, b"")[0].report.decisions)
    whole, events = resumed_from(service, one, log)
    assert (events, len(whole.images), whole.report.replayed_steps) == ([], 1, 3)
    both = bytes(undisturbed.logs[0])
    assert any(
        "resumed at step 1 of 3" in line
        for line in resumed_from(service, asked, both[: len(both) // 2])[0].report.decisions
    )


@pytest.mark.parametrize("step", [1, 2])
def test_cancelling_a_resumed_request(service, asked, step):
    """Also while it is replayed; its log goes on to serve."""
    engine, buffer = engine_over(service), bytearray()
    fingerprint = engine.fingerprint(asked, options=SIX)
    first = engine.submit(
        asked,
        lambda event: event.cancel() if event.step == step else None,
        options=SIX,
        outcomes=OutcomeLog(fingerprint, buffer.extend),
    )
    assert first.result().report.cancelled
    again = engine.submit(asked, options=SIX, outcomes=OutcomeLog.read(bytes(buffer), fingerprint))
    again.cancel()
    assert again.result().report.cancelled
    third = engine.submit(asked, options=SIX, outcomes=OutcomeLog.read(bytes(buffer), fingerprint))
    assert third.result().report.replayed_rows == 4 * step
    assert torch.equal(third.result().latents, draw(service, [asked]).latents[0])


def test_a_disk_that_is_full_fails_its_own_request(service, asked):
    engine, written = engine_over(service), []

    def full(data: bytes) -> None:
        written.append(data)
        if len(written) == 3:
            raise OSError(28, "No space left on device")

    log = OutcomeLog(engine.fingerprint(asked, options=SIX), full)
    failing = engine.submit(asked, options=SIX, outcomes=log)
    other = engine.submit(asked, options=SIX)
    assert len(other.result().images) == 2
    with pytest.raises(OSError, match="No space"):
        failing.result()


def test_requests_come_with_logs_from_other_threads(service, asked, undisturbed):
    log = bytes(undisturbed.logs[0])
    found: list[Tensor] = []
    with engine_over(service) as engine:

        def submit(cut: int) -> None:
            read = OutcomeLog.read(log[:cut], engine.fingerprint(asked, options=SIX))
            found.append(engine.submit(asked, options=SIX, outcomes=read).result().latents)

        threads = [threading.Thread(target=submit, args=(cut,)) for cut in (0, len(log) // 4, len(log))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [torch.equal(one, undisturbed.latents[0]) for one in found] == [True] * 3


# Bytes


def test_a_single_cell_is_written_whatever_the_order_of_its_memory():
    """Of a picture of one cell every stride says nothing, and its memory is in both orders."""
    cell = torch.arange(4.0).as_strided((1, 4, 1, 1), (4, 1, 4, 4))
    written = Answered(
        picture=0, position=0, unit=0, question=0, finite=True, prediction=cell, observations={}
    )  # fmt: skip
    ((read, _),) = records(MAGIC + framed(written))
    assert isinstance(read, Answered)
    assert torch.equal(read.prediction, cell)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_come_back_with_their_bits_and_the_order_of_their_memory(dtype):
    """Sums over numbers in another order are rounded otherwise."""
    values = torch.arange(2 * 4 * 3 * 5).reshape(2, 4, 3, 5).to(dtype)
    for batch in (values, values.contiguous(memory_format=torch.channels_last)):
        written = Answered(
            picture=3, position=70_000, unit=2**31, question=2**32 - 1, finite=True,
            prediction=batch[1:], observations={"mid_block.attn": batch[:1, 0]},
        )  # fmt: skip
        ((read, _),) = records(MAGIC + framed(written))
        assert isinstance(read, Answered)
        assert (read.picture, read.position, read.unit, read.question) == (3, 70_000, 2**31, 2**32 - 1)
        assert (read.prediction.dtype, read.prediction.stride()) == (dtype, batch[1:].stride())
        assert torch.equal(read.prediction, batch[1:])
        assert torch.equal(read.observations["mid_block.attn"], batch[:1, 0])


# What a log refuses


def test_a_log_of_something_else_is_refused_by_name(service, asked, undisturbed, lora):
    engine, log = engine_over(service), bytes(undisturbed.logs[0])
    adapted = replace(asked, adapters=(Adapter(lora),))
    others = {
        "request.prompt is another": engine.fingerprint(replace(asked, prompt="b"), options=SIX),
        "request.image was not given": engine.fingerprint(replace(asked, image=photo()), options=SIX),
        "adapter one was not given": engine.fingerprint(adapted, options=SIX),
        "rows of a forward was 6, and is any": engine.fingerprint(asked),
        "rows of a forward was 6, and is 8": engine.fingerprint(
            asked, options=RunOptions(limits=BatchLimits(padded_to=8))
        ),
        "numbers that are not finite was upcast, and is clamp": engine.fingerprint(
            asked, options=replace(SIX, non_finite="clamp")
        ),
        "latents was not given": engine.fingerprint(asked, options=SIX, latents=torch.zeros(2, 4, 8, 8)),
        "model is another": engine_over(service_of("sd2")).fingerprint(asked, options=SIX),
        "number types was unet float32": engine_over(service_of("sd1", torch.bfloat16)).fingerprint(asked, options=SIX),
    }
    for words, fingerprint in others.items():
        with pytest.raises(InvalidInput, match=words) as refusal:
            OutcomeLog.read(log, fingerprint)
        assert refusal.value.argument == "outcomes"
        with pytest.raises(InvalidInput, match="outcomes is a log of something else"):
            engine.submit(asked, options=SIX, outcomes=OutcomeLog(fingerprint))


def test_versions_machines_and_files_are_part_of_it(service, asked, undisturbed, lora, tmp_path):
    engine = engine_over(service)
    now = engine.fingerprint(asked, options=SIX)
    then = replace(now, parts={**now.parts, "undertow": "0.0", "machine": "another processor"})
    assert [line.split(",")[0] for line in now.differences(then)] == [
        "undertow was 0.0",
        "machine was another processor",
    ]
    assert f"torch {torch.__version__}" in now.parts["machine"]
    copy = tmp_path / "one.safetensors"
    copy.write_bytes(lora.read_bytes())
    adapted, moved = (replace(asked, adapters=(Adapter(path),)) for path in (lora, copy))
    first = engine.fingerprint(adapted)
    assert engine.fingerprint(moved) == first, "wherever the file lies"
    copy.write_bytes(lora.read_bytes()[:-4] + b"\0\0\0\1")
    assert engine.fingerprint(moved).differences(first) == ["adapter one is another"]


def test_a_log_serves_one_run(service, asked, undisturbed):
    engine = engine_over(service)
    log = OutcomeLog.read(bytes(undisturbed.logs[0]), engine.fingerprint(asked, options=SIX))
    engine.submit(asked, options=SIX, outcomes=log)
    with pytest.raises(InvalidInput, match="outcomes is a log in use"):
        engine.submit(asked, options=SIX, outcomes=log)


def test_a_new_log_is_of_the_request_that_it_is_submitted_with(service, asked):
    engine, buffer = engine_over(service), bytearray()
    drawn = engine.submit(asked, options=SIX, outcomes=OutcomeLog(sink=buffer.extend)).result()
    log = OutcomeLog.read(bytes(buffer), engine.fingerprint(asked, options=SIX))
    again = engine.submit(asked, options=SIX, outcomes=log).result()
    assert torch.equal(again.latents, drawn.latents)
    assert again.report.rows == 0
    with pytest.raises(InvalidInput, match="rows of a forward was 6, and is any"):
        OutcomeLog.read(bytes(buffer), engine.fingerprint(asked))


def test_where_each_is_apart_a_log_of_something_else_fails_its_own_request(service, asked):
    engine = engine_over(service)
    foreign, new = OutcomeLog(engine.fingerprint(asked)), OutcomeLog()
    with pytest.raises(InvalidInput, match="a log of something else"):
        engine.submit_together([asked, asked], options=SIX, outcomes=[foreign, new])
    failed, drawn = engine.submit_together([asked, asked], options=SIX, outcomes=[foreign, new], apart=True)
    with pytest.raises(InvalidInput, match="a log of something else"):
        failed.result()
    assert len(drawn.result().images) == 2
    (alone,) = engine.submit_together([asked], options=SIX, outcomes=[foreign], apart=True)
    assert alone.done
    engine.run()


def test_a_replay_that_asks_for_something_else_is_noticed(service, asked, undisturbed):
    """As it would on a machine whose fingerprint is the same and whose numbers are not."""
    engine, other = engine_over(service), replace(asked, seed=6)
    forged = MAGIC + framed(Begun(fingerprint=engine.fingerprint(other, options=SIX)))
    start = next(end for _, end in records(bytes(undisturbed.logs[0])))
    log = OutcomeLog.read(forged + bytes(undisturbed.logs[0])[start:], engine.fingerprint(other, options=SIX))
    with pytest.raises(
        InvalidInput, match=r"a log whose request 0, picture 0, step 0, branch .* other latents"
    ) as refusal:
        engine.submit(other, options=SIX, outcomes=log).result()
    assert refusal.value.argument == "outcomes"


def test_what_is_no_log_is_refused(service, asked):
    fingerprint = engine_over(service).fingerprint(asked)
    with pytest.raises(InvalidInput, match=r"outcomes is bytes that begin with b'\\x89PNG"):
        OutcomeLog.read(b"\x89PNG\r\n", fingerprint)
    with pytest.raises(InvalidInput, match="outcomes is bytes that begin with"):
        OutcomeLog.read(MAGIC.replace(b"1", b"2"), fingerprint)
    with pytest.raises(InvalidInput, match=r"data is 'apple.log'"):
        OutcomeLog.read("apple.log", fingerprint)


def test_damage_cuts_a_log_off_and_raises_nothing(service, asked, undisturbed, chance):
    fingerprint, log = engine_over(service).fingerprint(asked, options=SIX), bytes(undisturbed.logs[0])
    for _ in range(100):
        place, damage = chance.randrange(len(MAGIC), len(log)), chance.randbytes(8)
        for damaged in (log[:place] + damage + log[place + 8 :], log[:place] + damage + log[place:]):
            read = OutcomeLog.read(damaged, fingerprint)
            assert read.whole_bytes <= place
            assert damaged[: read.whole_bytes] == log[: read.whole_bytes]
    for appended in (bytes(1000), chance.randbytes(1000)):  # zeros are what a loss of power leaves
        assert OutcomeLog.read(log + appended, fingerprint).whole_bytes == len(log)


def absurd() -> Iterator[bytes]:
    """Payloads that no engine writes: their checksums are right."""
    answer = Answered(picture=0, position=0, unit=0, question=0, finite=True, prediction=torch.zeros(1, 4, 8, 8))
    payload = framed(answer)[8:]
    yield payload[:23] + b"\xff" + b"\xff\xff\xff\xff" * 255  # 255 sides of 2^32 - 1
    yield payload[:24] + b"\xff\xff\xff\x7f" * 4 + payload[40:]  # the sides of more numbers than there are
    yield payload[:21] + b"\x09" + payload[22:]  # a number type that there is not
    yield payload + b"more"
    yield payload[:18]
    yield b""
    yield b"\x09"
    yield b"\0[]"
    yield b"\4{}"
    yield b"\4" + b"[" * 100_000
    yield b'\4{"unit": 0, "reason": "", "economy": {"rows": -1}}'


@pytest.mark.parametrize("payload", list(absurd()), ids=lambda payload: f"{payload[:24]!r}")
def test_a_forged_record_ends_the_log(service, asked, payload):
    """Sizes are compared with what there is before anything is allocated."""
    fingerprint = engine_over(service).fingerprint(asked)
    start = MAGIC + framed(Begun(fingerprint=fingerprint))
    length = len(payload).to_bytes(4, "little")
    forged = length + zlib.crc32(payload, zlib.crc32(length)).to_bytes(4, "little") + payload
    assert OutcomeLog.read(start + forged, fingerprint).whole_bytes == len(start)


# Memory


def test_what_was_done_for_less_memory_goes_on(service, asked, monkeypatch):
    """Forwards after the crash compute as those before it, and a picture is decoded as it was the first time."""
    parts, budgets = [], []

    def spied_forward(rows, manager, padded_to, runner, ports, kept):
        parts.append(ports.feed_forward_chunks)
        return forward.forward(rows, manager, padded_to, runner, ports, kept)

    def spied_decode(vae, latents, *, budget_bytes, **how):
        budgets.append(budget_bytes is not None)
        return decode_safely(vae, latents, budget_bytes=budget_bytes, **how)

    monkeypatch.setattr(denoise, "forward", spied_forward)
    monkeypatch.setattr(decode, "decode_safely", spied_decode)
    course = (
        StepDown(unit=1, reason="tried to allocate 40.00 GiB", economy=Economy(feed_forward_chunks=2)),
        StepDown(unit=7, reason="decoding ran out", economy=Economy(feed_forward_chunks=2, decode_bytes=2**16)),
    )
    with_course = replace(SIX, course=course)
    whole = draw(service, [asked], options=with_course)
    assert (parts, budgets) == ([1, 2, 2], [False, True])
    log = bytes(whole.logs[0])
    found = list(records(log))
    one_step = next(end for record, end in found if isinstance(record, Answered) and record.unit == 2)
    for options, cut, expected, taken in (
        (with_course, len(log), ([], [False, True]), course),
        (SIX, len(log), ([], [False, True]), course),
        (with_course, found[-3][1], ([], [False, True]), course),  # the first picture was decoded
        (SIX, found[-3][1], ([], [False, False]), course[:1]),  # nothing ran out this time
        (SIX, one_step + 300, ([2, 2], [False, False]), course[:1]),  # within the second forward
    ):
        parts.clear()
        budgets.clear()
        result, _ = resumed_from(service, asked, log[:cut], options)
        assert (parts, budgets) == expected
        assert result.report.memory.course == taken
        assert torch.equal(result.latents, whole.latents[0])


def test_numbers_that_are_none_are_replayed_where_they_are_kept(service):
    asked = requests_of({"one": {}})["one"]

    def with_none(options: RunOptions) -> tuple[Drawn, bytes]:
        whole = draw(service, [asked], options=options)
        log = bytearray(MAGIC)
        for record, _ in records(bytes(whole.logs[0])):
            if isinstance(record, Answered) and record.position == 4:
                record = replace(record, finite=False, prediction=torch.full_like(record.prediction, torch.nan))
            log += framed(record)
        return whole, bytes(log)

    whole, log = with_none(SIX)
    result, _ = resumed_from(service, asked, log)
    assert result.report.replayed_rows == 5, "this one is computed again"
    assert torch.equal(result.latents, whole.latents[0])
    keeping = replace(SIX, non_finite="keep")
    with pytest.raises(InvalidInput, match="latents is non-finite"):
        resumed_from(service, asked, with_none(keeping)[1], keeping)


# Work


def test_watchers_are_told_of_each_unit_of_work(service, lora):
    events: list[WorkEvent] = []

    def fails(event: WorkEvent) -> None:
        raise RuntimeError("a watcher's own")

    engine = engine_over(service, watchers=[fails, events.append])
    asked = requests_of({"one": {}, "two": {"count": 2, "guidance_scale": 1.0}, "lora": {"adapters": (Adapter(lora),)}})
    engine.submit_together(list(asked.values()), options=SIX)
    engine.run()
    assert {event.kind for event in events} == {"encode", "denoise", "decode"}
    assert all(event.seconds > 0 for event in events)
    forwards = [event for event in events if event.kind == "denoise"]
    assert {(event.requests, event.rows, event.computed_rows, event.adapters) for event in forwards} == {
        ((0, 1), 4, 6, 0),
        ((2,), 2, 6, 1),
    }
    assert {(event.size, event.failed_rows, event.refiner) for event in forwards} == {((8, 8), 0, False)}
    decoded = [event for event in events if event.kind == "decode"]
    assert sorted(event.requests for event in decoded) == [(0,), (1,), (1,), (2,)]
    assert {event.size for event in decoded} == {(8, 8)}
    assert {event.requests for event in events if event.kind == "encode"} == {(0,), (1,), (2,)}
