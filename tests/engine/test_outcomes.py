"""A request goes on from the log of its outcomes: the same bits as undisturbed, and nothing computed twice."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.adapters.lora.files import is_attention, kohya, layers_of, write
from tests.engine.test_denoise import photo, right_half
from tests.services import service_of
from undertow import (
    Adapter,
    AdapterCapacity,
    BatchLimits,
    GenerationRequest,
    HighResolution,
    InvalidInput,
    Region,
    RequestFailed,
    UNetService,
    Views,
)
from undertow.engine.engine import Engine
from undertow.engine.events import WorkEvent
from undertow.engine.options import RunOptions
from undertow.engine.outcomes import OutcomeLog
from undertow.engine.saving import encoded
from undertow.memory.ladder import Economy, StepDown
from undertow.sampling.catalogue import SAMPLERS

SIXTEEN = RunOptions(limits=BatchLimits(padded_to=16))
"""Every forward of sixteen rows, so that a picture is bit-equal whatever shares its batches."""

COMMON = {"prompt": "a", "steps": 3, "seed": 5, "schedule": "karras", "size": 16}

HALVES = (Region(prompt="b", box=(0, 0, 0.5, 1)), Region(prompt="c", box=(0.5, 0, 1, 1), weight=2.0))

KINDS = {
    "three pictures": {"count": 3, "sampler": "euler_ancestral"},
    "cancelled guidance": {"guidance_scale": 1.0},
    "image to image": {"image": photo(), "strength": 0.7, "size": 32},
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
    resumed: list[int]


def engine_over(service: UNetService, **settings: object) -> Engine:
    return Engine(service.model, service.refiner, service.adapters, **settings)


def draw(
    service: UNetService,
    requests: Sequence[GenerationRequest],
    before: Sequence[bytes] | None = None,
    options: RunOptions = SIXTEEN,
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
        resumed=[result.report.replayed_rows for result in results],
    )


def assert_resumes(
    service: UNetService, requests: Mapping[str, GenerationRequest], rounds: int, chance: random.Random
) -> None:
    """Every request is killed at a random byte of its log and goes on in another engine beside others."""
    asked = list(requests.values())
    undisturbed = draw(service, asked)
    for _ in range(rounds):
        kept = [bytes(log[: chance.randrange(len(log) + 1)]) for log in undisturbed.logs]
        resumed = draw(service, asked, kept)
        for name, one, other in zip(requests, undisturbed.latents, resumed.latents, strict=True):
            assert torch.equal(one, other), name
        assert resumed.rows == undisturbed.rows - resumed.replayed
        assert [len(log) for log in resumed.logs] == [len(log) for log in undisturbed.logs]


@pytest.fixture
def chance(request) -> random.Random:
    return random.Random(request.node.name)


def test_every_sampler_goes_on_where_it_was(service, chance):
    path = type(service.model.schedule.path)
    fitting = [name for name, entry in SAMPLERS.items() if path in entry.paths and not entry.inverse]
    assert len(fitting) > 40
    coarse = {"sampler_options": {"rtol": 1.0, "h_init": 0.5}}  # of adaptive ones, which otherwise take 90 evaluations
    samplers = {
        name: {"sampler": name, "guidance_scale": 1.4 if "cfg_pp" in name else 1.0}
        | (coarse if "adaptive" in name else {})
        for name in fitting
    }
    assert_resumes(service, requests_of(samplers), 1, chance)


def test_every_kind_of_request_goes_on_where_it_was(service, chance):
    assert_resumes(service, requests_of(KINDS), 1, chance)
