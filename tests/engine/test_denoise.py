"""Unlike requests in shared batches: each equals itself alone (G4-G6, R136)."""

import time

import numpy as np
import pytest
import torch
from PIL import Image

from tests.services import fresh_service
from undertow import (
    BatchLimits,
    GenerationRequest,
    HighResolution,
    InvalidInput,
    NonFiniteError,
    Region,
    UNet,
    UNetConfig,
    Views,
)
from undertow.engine.denoise import Batcher, Task
from undertow.engine.rows import Row
from undertow.unet.conditioning import Conditioning
from undertow.unet.config import Level, Middle

TOLERANCE = 1e-5
"""Of the latents' largest value, in float32: a row's last bits depend on how many rows are computed with it."""


def photo(seed=0, size=32):
    small = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)


def right_half(size=32):
    mask = Image.new("L", (size, size))
    mask.paste(255, (size // 2, 0, size, size))
    return mask


def unlike_requests():
    few = {"sigmas": (10.0, 3.0, 0.0)}
    return [
        GenerationRequest(prompt="red apple", seed=1, **few),
        GenerationRequest(prompt="blue dog", seed=2, sampler="heun", guidance_scale=2.0, **few),
        GenerationRequest(
            prompt="a bird", seed=3, sampler="euler_a", guidance_scale=1.0, sigmas=(10.0, 6.0, 3.0, 0.0), count=2
        ),
        GenerationRequest(prompt="wide", seed=4, size=(32, 48), sampler="euler", **few),
        GenerationRequest(prompt="again", seed=5, image=photo(), strength=0.7, **few),
        GenerationRequest(prompt="half", seed=6, image=photo(), mask=right_half(), sampler="ddim", **few),
        GenerationRequest(prompt="", seed=7, regions=(Region(prompt="cat", box=(0, 0, 0.5, 1)),), **few),
        GenerationRequest(prompt="large", seed=8, size=(64, 32), views=Views(), **few),
        GenerationRequest(prompt="twice", seed=9, high_resolution=HighResolution(scale=1.5, upscale="latent"), **few),
        GenerationRequest(prompt="ring", seed=10, seamless="x", **few),
        GenerationRequest(prompt="near", seed=11, variation_seed=99, variation_strength=0.3, **few),
        GenerationRequest(prompt="red AND [blue:green:1]", seed=12, **few),
    ]


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * max(1.0, expected.abs().max().item()))


def test_unlike_requests_share_batches_and_equal_themselves_alone(service):
    requests = unlike_requests()
    together = service.generate_many(requests)

    rows = []
    for request, result in zip(requests, together, strict=True):
        alone = service.run(request)
        assert_close(result.latents, alone.latents)
        assert len(result.images) == request.count
        assert result.report.request is request
        rows.append(alone.report.rows)
    assert together[0].report.rows > rows[0]
    assert rows[:3] == [2, 2, 2], "two sides of guidance, or two pictures without"


def test_at_one_number_of_rows_a_picture_is_bit_equal_whatever_shares_its_batches(service):
    """Among them several evaluations a step, noise drawn meanwhile, two pictures, and a mask."""
    requests, limits = [unlike_requests()[index] for index in (0, 1, 2, 5)], BatchLimits(padded_to=8)
    together = service.generate_many(requests, limits=limits)
    reordered = service.generate_many(requests[::-1], limits=limits)[::-1]

    for request, one, other in zip(requests, together, reordered, strict=True):
        alone = service.generate_many([request], limits=limits)[0]
        assert torch.equal(one.latents, alone.latents)
        assert torch.equal(other.latents, alone.latents)
        assert one.report.rows <= 8


def test_a_picture_does_not_depend_on_the_most_rows_of_a_batch(service):
    requests = unlike_requests()[:3]
    plain = service.generate_many(requests)
    narrow = service.generate_many(requests, limits=BatchLimits(rows=1))

    for one, other in zip(plain, narrow, strict=True):
        assert_close(one.latents, other.latents)
        assert other.report.rows == 1


def test_events_name_request_picture_and_step(service):
    events = []
    requests = [GenerationRequest(prompt="a", steps=2, count=2), GenerationRequest(prompt="b", steps=3)]
    service.generate_many(requests, observe=events.append)

    seen = {(event.request, event.picture): [] for event in events}
    for event in events:
        seen[event.request, event.picture].append(event.step)
        assert event.steps == requests[event.request].steps
    assert seen == {(0, 0): [0, 1], (0, 1): [0, 1], (1, 0): [0, 1, 2]}


def test_a_short_request_has_its_result_before_a_long_one(service):
    finished = []
    requests = [GenerationRequest(prompt="a", steps=6), GenerationRequest(prompt="b", steps=2)]
    results = service.generate_many(requests, finished=lambda number, result: finished.append((number, result)))

    assert [number for number, _ in finished] == [1, 0]
    assert [result for _, result in sorted(finished, key=lambda one: one[0])] == results


def test_pictures_of_a_request_that_is_larger_than_a_forward_are_finished_one_after_the_other(service):
    """So that those which are finished can be kept. Another request has its turns in between, as before."""
    told: list[tuple[int, int, int]] = []
    few = {"sigmas": (10.0, 3.0, 1.0, 0.0), "guidance_scale": 1.0}
    requests = [GenerationRequest(prompt="a", count=4, **few), GenerationRequest(prompt="b", seed=7, **few)]
    service.generate_many(
        requests,
        limits=BatchLimits(rows=1),
        observe=lambda event: told.append((event.request, event.picture, event.step)),
    )
    first = [(picture, step) for request, picture, step in told if request == 0 and step > 0]
    assert first == sorted(first)
    assert told.index((1, 0, 2)) < told.index((0, 3, 1)), "the other does not wait for all of it"


def test_a_preview_is_a_picture_of_the_newest_estimate(service):
    previews = []
    service.generate("a", steps=3, observe=lambda event: previews.append(event.preview()))

    assert previews[0] is None
    assert all(isinstance(preview, Image.Image) for preview in previews[1:])


def test_a_cancelled_request_ends_and_the_others_do_not(service):
    def observe(event):
        if event.request == 0 and event.step == 1:
            event.cancel()

    requests = [GenerationRequest(prompt="a", steps=4, seed=1), GenerationRequest(prompt="b", steps=4, seed=2)]
    first, second = service.generate_many(requests, observe=observe)

    assert first.report.cancelled
    assert first.images == []
    assert not second.report.cancelled
    assert_close(second.latents, service.run(requests[1]).latents)


def test_a_request_that_cannot_be_drawn_is_refused_before_any_work(service):
    steps = []
    with pytest.raises(InvalidInput, match="multiples of 2"):
        service.generate_many(
            [GenerationRequest(prompt="a"), GenerationRequest(prompt="b", size=(33, 32))], observe=steps.append
        )
    assert steps == []


def test_not_a_number_in_one_picture_is_told(service):
    bad = torch.full((1, 4, 16, 16), float("inf"))
    with pytest.raises((NonFiniteError, InvalidInput)):
        service.generate("a", steps=2, latents=bad, debug="nan")


@pytest.mark.parametrize("limits", [{"rows": 0}, {"padded_to": 0}, {"rows": 9, "padded_to": 8}])
def test_impossible_limits_are_refused(limits):
    with pytest.raises(InvalidInput):
        BatchLimits(**limits)


@pytest.fixture
def network():
    """A tiny U-Net, and the sizes of the batches that it was given."""
    config = UNetConfig(
        levels=(Level(channels=8, resnets=1),), middle=Middle(), in_channels=1, out_channels=1, norm_groups=4
    )
    unet, sizes = UNet(config).eval(), []
    unet.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    return unet, sizes


def unexpected(result):
    raise AssertionError(result)


def evaluations(unet, count, before=lambda step: None):
    """A task of `count` evaluations one after the other; its result is how many were answered."""
    x = torch.zeros(1, 1, 4, 4)
    for step in range(count):
        before(step)
        row = Row(unet=unet, latents=x, timestep=torch.ones(1), conditioning=Conditioning())
        (outcome,) = yield [row]
        x = outcome.prediction
    return torch.tensor(count)


@torch.inference_mode()
def test_tasks_join_and_leave_between_steps(network):
    unet, sizes = network
    results = {}
    batcher = Batcher()

    def task(name, *arguments):
        def done(result):
            results[name] = int(result)

        return Task(limits=BatchLimits(rows=4), steps=evaluations(unet, *arguments), done=done, failed=unexpected)

    late = task("late", 1)
    batcher.join(task("long", 3, lambda step: batcher.join(late) if step == 1 else None))
    batcher.join(task("short", 1))
    batcher.run()

    assert results == {"long": 3, "short": 1, "late": 1}
    assert sizes == [2, 2, 1]


@torch.inference_mode()
def test_rows_beyond_the_limit_wait_and_everyone_gets_a_turn(network):
    unet, sizes = network
    done = []
    batcher = Batcher()
    for name in range(5):
        batcher.join(
            Task(
                limits=BatchLimits(rows=2),
                steps=evaluations(unet, 2),
                done=lambda result, name=name: done.append(name),
                failed=unexpected,
            )
        )
    batcher.run()

    assert sorted(done) == [0, 1, 2, 3, 4]
    assert sum(sizes) == 10
    assert max(sizes) == 2


@torch.inference_mode()
def test_one_that_fails_does_not_end_the_others(network):
    unet, results, errors = network[0], [], []
    batcher = Batcher()

    def failing(step):
        if step == 1:
            raise ValueError("broken")

    batcher.join(Task(steps=evaluations(unet, 3, failing), done=unexpected, failed=errors.append))
    batcher.join(Task(steps=evaluations(unet, 3), done=results.append, failed=unexpected))
    batcher.run()

    assert len(results) == 1
    assert str(errors[0]) == "broken"


def test_cancelling_ends_all_pictures_of_a_request_at_once(service):
    def observe(event):
        if event.request == 0 and event.step == 1:
            event.cancel()

    requests = [GenerationRequest(prompt="a", steps=4, count=3), GenerationRequest(prompt="b", steps=4)]
    first, second = service.generate_many(requests, observe=observe)

    assert first.report.cancelled
    assert first.images == []
    assert len(second.images) == 1


def test_a_picture_that_cannot_be_decoded_does_not_end_the_others():
    service = fresh_service("sd1")
    service.vae.decoder.conv_out.register_forward_hook(lambda module, inputs, output: output * float("nan"))
    steps, finished = [], []
    requests = [GenerationRequest(prompt="a", steps=1), GenerationRequest(prompt="b", steps=3)]

    with pytest.raises(NonFiniteError):
        service.generate_many(
            requests,
            observe=lambda event: steps.append((event.request, event.step)),
            finished=lambda number, result: finished.append(number),
        )
    assert (1, 2) in steps
    assert finished == []


@torch.inference_mode()
def test_a_forward_that_fails_ends_those_in_it_and_closes_their_generators(network):
    unet, failed, closed = network[0], [], []

    def steps(channels):
        try:
            x = torch.zeros(1, channels, 4, 4)
            yield [Row(unet=unet, latents=x, timestep=torch.ones(1), conditioning=Conditioning())]
        finally:
            closed.append(channels)
        return torch.tensor(channels)

    done = []
    batcher = Batcher()
    for channels in (2, 1, 2):  # the network reads one channel
        batcher.join(Task(steps=steps(channels), done=done.append, failed=failed.append))
    batcher.run()
    assert [int(result) for result in done] == [1]
    assert len(failed) == 2
    assert closed == [2, 2, 1]


@torch.inference_mode()
def test_who_leaves_is_closed_and_not_asked_again(network):
    unet, sizes = network
    batcher = Batcher()
    task = Task(steps=evaluations(unet, 3), done=unexpected, failed=unexpected)
    batcher.join(task)
    batcher.step()
    batcher.leave(task)
    batcher.leave(task)
    batcher.run()
    assert sizes == [1]
    assert task.steps.gi_frame is None
    assert not batcher.busy


@torch.inference_mode()
def test_nobody_waits_for_long(network):
    """Whoever was served goes behind those who were not: with one row a forward, everyone in turn."""
    unet, order = network[0], []

    def noted(name):
        yield from evaluations(unet, 3, lambda step: order.append((step, name)))
        return torch.tensor(0)

    batcher = Batcher()
    for name in "abc":
        batcher.join(Task(limits=BatchLimits(rows=1), steps=noted(name), done=lambda result: None, failed=unexpected))
    batcher.run()
    assert order == [(step, name) for step in range(3) for name in "abc"]


@torch.inference_mode()
def test_time_is_shared_by_rows(network):
    """Of one forward of three rows, two of which are one picture's."""
    unet, shares = network[0], {"one": [], "two": []}
    unet.register_forward_pre_hook(lambda *_: time.sleep(0.02))

    def asks(count):
        row = Row(unet=unet, latents=torch.zeros(1, 1, 4, 4), timestep=torch.ones(1), conditioning=Conditioning())
        yield [row] * count
        return torch.tensor(count)

    batcher = Batcher()
    for count, name in ((1, "one"), (2, "two")):
        batcher.join(Task(steps=asks(count), done=lambda result: None, failed=unexpected, shared=shares[name].append))
    started = time.perf_counter()
    batcher.run()
    elapsed = time.perf_counter() - started
    (one,), (two,) = shares.values()
    assert (one.rows, two.rows) == (3, 3)
    assert two.seconds == pytest.approx(2 * one.seconds)
    assert 0.02 <= one.seconds + two.seconds <= elapsed


@pytest.mark.parametrize(
    ("limits", "side", "rows"),
    [
        # By default as many cells as two pictures of 512x512 pixels have on a CPU, and never fewer than two rows.
        ({}, 64, 2),
        ({}, 32, 8),
        ({}, 128, 2),
        ({"rows": 3}, 32, 3),
        ({"padded_to": 5}, 32, 5),
        ({"rows": 3, "padded_to": 5}, 32, 3),
        ({"rows": 5, "padded_to": 5}, 32, 5),
    ],
)
def test_how_many_rows_a_forward_has(limits, side, rows):
    assert BatchLimits(**limits).most_rows(torch.zeros(1, 4, side, side, dtype=torch.bfloat16)) == rows


def test_how_many_rows_a_forward_has_on_accelerators():
    assert BatchLimits().most_rows(torch.zeros(1, 4, 64, 64, device="meta")) == 16
    assert BatchLimits().most_rows(torch.zeros(1, 4, 64, 32, device="meta")) == 32


@torch.inference_mode()
def test_every_forward_is_padded_to_its_number_of_rows(network):
    unet, sizes = network
    results = []
    batcher = Batcher()
    for _ in range(3):
        batcher.join(
            Task(
                limits=BatchLimits(rows=2, padded_to=3),
                steps=evaluations(unet, 1),
                done=results.append,
                failed=unexpected,
            )
        )
    batcher.run()
    assert sizes == [3, 3]
    assert len(results) == 3
