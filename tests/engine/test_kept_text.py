"""Keys and values of texts are computed once for all steps, and change no bit of a picture."""

from collections import Counter
from contextlib import contextmanager

import pytest
import torch

from tests.services import fresh_service, service_of
from undertow import GenerationRequest
from undertow.engine.denoise import Batcher
from undertow.memory.families import family
from undertow.memory.forecast import forecast
from undertow.memory.machine import Machine
from undertow.memory.work import Work

STEPS = 4
REQUEST = GenerationRequest(prompt="red apple", negative_prompt="blue", seed=1, steps=STEPS, sampler="euler")


@contextmanager
def counted(service):
    """How often each cross-attention projects its text."""
    calls, hooks = Counter(), []
    for name, module in service.model.require_unet().named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            hooks.append(module.register_forward_hook(lambda *_, name=name: calls.update([name])))
    yield calls
    for hook in hooks:
        hook.remove()


def without(monkeypatch):
    monkeypatch.setattr(Batcher, "_keeps_text", lambda *_: False)


def latents(service, requests):
    return [result.latents for result in service.generate_many(requests)]


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_a_text_is_projected_once_for_all_steps(name, monkeypatch):
    service = service_of(name)
    with counted(service) as calls:
        kept = service.run(REQUEST).latents
    assert calls
    assert set(calls.values()) == {1}
    without(monkeypatch)
    with counted(service) as calls:
        assert torch.equal(service.run(REQUEST).latents, kept)
    assert set(calls.values()) == {STEPS}


def test_rows_that_join_and_leave_have_texts_of_their_own(monkeypatch):
    service = service_of("sd1")
    requests = [
        REQUEST,
        GenerationRequest(prompt="a dog", seed=2, steps=6, sampler="heun"),
        GenerationRequest(prompt="[cat:dog:0.5] (bird:1.3)", seed=3, steps=5, count=2),
        GenerationRequest(prompt="plain", seed=4, steps=3, guidance_scale=1.0),
    ]
    kept = latents(service, requests)
    without(monkeypatch)
    assert all(map(torch.equal, kept, latents(service, requests)))


def test_nothing_is_kept_when_nobody_draws():
    service = service_of("sd1")
    service.run(REQUEST)
    assert not service.engine._batcher._text._found


@torch.no_grad()
def test_numbers_that_are_not_finite_are_looked_at_at_every_step(monkeypatch):
    service = fresh_service("sd1")
    unet = service.model.require_unet()
    layer = next(module for name, module in unet.named_modules() if name.endswith("attn2.to_k"))
    layer.weight[0, 0] = float("inf")
    with counted(service) as kept:
        service.run(REQUEST, non_finite="clamp")
    without(monkeypatch)
    with counted(service) as calls:
        service.run(REQUEST, non_finite="clamp")
    assert kept == calls


def test_the_forecast_counts_what_is_kept():
    subject, work, machine = family("sd15"), Work(size=(64, 64), tokens=154), Machine()
    plain, kept = (
        forecast(subject, one, machine).stage("denoise").activation_bytes
        for one in (work, Work(size=(64, 64), tokens=154, kept_text=True))
    )
    assert subject.unet is not None
    widths = sum(subject.unet.cross_attentions().values())
    assert kept - plain == 2 * 2 * 154 * widths * 4
