"""Adapters of requests: mixed in one batch, scheduled over steps, by region, and gone without a trace."""

import itertools
from dataclasses import replace
from functools import cache

import pytest
import torch
from PIL import Image

from tests.adapters.lora.files import is_attention, kohya, layers_of, normal, write
from tests.services import service_of
from undertow import (
    Adapter,
    AdapterCapacity,
    AdapterMismatch,
    AdapterStack,
    BatchLimits,
    DamagedWeights,
    GenerationRequest,
    InvalidInput,
    PredictionContext,
    Region,
)
from undertow.adapters.lora.kind import LoraKind
from undertow.engine.engine import Engine

TOLERANCE = 1e-5
"""Of the latents' largest value, in float32: banked changes are added behind the product, merged ones before it."""

EFFECT = 0.02
"""The least relative change of a picture's latents, or a comparison shows nothing."""

CAPACITY = AdapterCapacity(slots=4, rank=16, per_row=2)


@pytest.fixture(scope="module")
def banked():
    return service_of("sd1", capacity=CAPACITY)


@pytest.fixture(scope="module")
def files(service, tmp_path_factory):
    """A file of every kind that rows of one batch shall use."""
    folder, layers = tmp_path_factory.mktemp("loras"), layers_of(service.unet)
    attention = {name: shape for name, shape in layers.items() if is_attention(name)}
    encoder = service.model.text.encoders[0]
    text = {
        name.removesuffix(".weight"): tuple(tensor.shape)
        for name, tensor in encoder.tensors().items()
        if name.endswith(("q_proj.weight", "fc1.weight"))
    }
    loha = {}
    for name, shape in attention.items():
        stem = "lora_unet_" + name.replace(".", "_")
        for part, size in (("w1_a", (shape[0], 5)), ("w1_b", (5, shape[1])), ("w2_a", (shape[0], 5))):
            loha[f"{stem}.hada_{part}"] = normal(*size, seed=f"{name}{part}") * 0.4
        loha[f"{stem}.hada_w2_b"] = normal(5, shape[1], seed=f"{name}w2_b") * 0.4 * shape[1] ** -0.5
    dora = {
        f"lora_unet_{name.replace('.', '_')}.dora_scale": 1 + normal(shape[0], 1, seed=name).abs()
        for name, shape in attention.items()
    }
    tensors = {
        "attention": kohya(attention, rank=4),
        "everywhere": kohya(layers, rank=8, alpha=4.0),
        "other": kohya(dict(list(attention.items())[::2]), rank=16, alpha=16.0),
        "text": kohya(text, prefix="lora_te_", rank=4, alpha=8.0),
        "loha": loha,
        "dora": {**kohya(attention, rank=4), **dora},
    }
    return {name: write(folder / f"{name}.safetensors", parts) for name, parts in tensors.items()}


@pytest.fixture(scope="module")
def plain(service):
    """The latents without adapters, of each seed once."""
    return cache(lambda seed: service.run(drawn(seed)).latents)


def drawn(seed, *adapters, **settings):
    return GenerationRequest(prompt="red apple", seed=seed, steps=2, adapters=adapters, **settings)


def unlike_requests(files):
    return [
        drawn(0),
        drawn(1, Adapter(files["attention"])),
        drawn(0, Adapter(files["attention"], scale=0.5), Adapter(files["everywhere"], scale=-0.7)),
        drawn(1, Adapter(files["everywhere"])),
        drawn(0, Adapter(files["text"], scale=1.5)),
        drawn(1, Adapter(files["loha"])),
        drawn(0, Adapter(files["dora"], scale=0.8), Adapter(files["attention"])),
        drawn(1, Adapter(files["other"], blocks={"up_blocks.*": 0.25, "*.attn1.*": 0})),
    ]


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * max(1.0, expected.abs().max().item()))


def differs(one, other):
    return float((one - other).norm() / other.norm()) > EFFECT


def test_eight_unlike_rows_equal_each_alone_with_merged_weights(service, banked, files, plain):
    requests = unlike_requests(files)
    assert service.adapters.kind(LoraKind).bank is None
    together = banked.generate_many(requests)

    for request, result in zip(requests, together, strict=True):
        merged = service.run(request)
        assert_close(result.latents, merged.latents)
        assert differs(merged.latents, plain(request.seed)) == bool(request.adapters)
    told = [" ".join(result.report.decisions) for result in together]
    assert told[2].count("in a slot beside the model's weights") == 2
    assert "added to the" in told[4], "of text encoders there is one at a time"
    assert "added to the model's weights while it draws, because" in told[5], "LoHa of rank 5 x 5 is over the capacity"
    assert ["in a slot" in told[6], "added to the model's weights" in told[6]] == [True, True]
    assert together[1].report.rows >= 10, "none, banked and text ones share batches"


def test_a_row_without_adapters_is_bit_equal_to_the_base_at_the_same_row_count(service, banked, files):
    limits = BatchLimits(padded_to=8)
    requests = [drawn(0), drawn(1, Adapter(files["everywhere"])), drawn(2, Adapter(files["attention"], scale=2.0))]
    together = banked.generate_many(requests, limits=limits)[0]
    base = service.generate_many(requests[:1], limits=limits)[0]
    assert torch.equal(together.latents, base.latents)


def test_bits_do_not_depend_on_how_many_adapters_others_have(banked, files, monkeypatch):
    """Rows with two make every product of their forward longer; of a fixed number of rows they keep to themselves."""
    limits, manager = BatchLimits(padded_to=8), banked.adapters
    one, two = drawn(1, Adapter(files["attention"])), drawn(2, Adapter(files["other"]), Adapter(files["everywhere"]))
    shapes, ports = set(), manager.ports

    def seen(rows, *arguments):
        found = ports(rows, *arguments)
        shapes.add((len({row.origin.request for row in rows}), found.weights and tuple(found.weights.slots.shape)))
        return found

    monkeypatch.setattr(manager, "ports", seen)
    alone = banked.generate_many([one], limits=limits)[0]
    assert shapes == {(1, (8, 1))}
    together = banked.generate_many([one, two, drawn(3)], limits=limits)
    assert torch.equal(alone.latents, together[0].latents)
    assert shapes == {(1, (8, 1)), (2, (8, 1)), (1, (8, 2))}, "one and none share"


def test_others_do_not_keep_a_request_with_merged_adapters_waiting_for_ever(service, files):
    """A server always has requests without any; the long one here stands for them."""
    long = GenerationRequest(prompt="red apple", sigmas=(*(10.0 * 0.9**step for step in range(60)), 0.0))
    with Engine(service.model, adapters=service.adapters) as engine:
        others, merged = engine.submit(long), engine.submit(drawn(1, Adapter(files["attention"])))
        merged.result()
        assert not others.done
        others.cancel()


def test_no_request_leaves_a_trace(service, banked, files):
    for loaded in (service, banked):
        before = loaded.state.hash
        loaded.generate_many(unlike_requests(files))
        assert loaded.state.hash == before
        with pytest.raises(RuntimeError, match="stop"):
            loaded.run(drawn(5, Adapter(files["loha"])), observe=_stop_at(1))
        assert loaded.state.hash == before
        assert loaded.adapters.kind(LoraKind).merged.pristine_bytes == 0


def _stop_at(step):
    def observe(event):
        if event.step == step:
            raise RuntimeError("stop")

    return observe


def test_more_adapters_than_slots_take_turns(service, files):
    small = service_of("sd1", capacity=AdapterCapacity(slots=1, rank=16, per_row=1))
    requests = [drawn(seed, Adapter(files[name])) for seed, name in enumerate(("attention", "everywhere", "other"))]
    for request, result in zip(requests, small.generate_many(requests), strict=True):
        assert_close(result.latents, service.run(request).latents)
    assert small.adapters.kind(LoraKind).bank.writes >= 3


@pytest.mark.parametrize("residency", ["banked", "merged"])
def test_scales_follow_a_schedule_over_the_steps(banked, files, residency):
    adapter = Adapter(files["attention"], residency=residency)
    even = {"sampler": "euler", "sigmas": (10.0, 6.0, 3.0, 0.0)}  # so that every step counts
    whole = banked.run(drawn(1, adapter, **even)).latents
    late = banked.run(drawn(1, replace(adapter, start=0.3), **even)).latents
    falling = banked.run(drawn(1, replace(adapter, scale=(1.0, 1.0, 0.0)), **even)).latents
    early = banked.run(drawn(1, replace(adapter, end=0.67), **even)).latents
    assert differs(late, whole)
    assert differs(late, banked.run(drawn(1, **even)).latents)
    assert_close(falling, early)


def test_banked_and_merged_schedules_agree(service, banked, files):
    request = drawn(1, Adapter(files["everywhere"], scale=(0.0, 1.0)))
    assert_close(banked.run(request).latents, service.run(request).latents)


def test_a_region_has_adapters_of_its_own(service, banked, files):
    left, right = (0, 0, 0.5, 1), (0.5, 0, 1, 1)
    regions = tuple(
        Region(prompt="cat", box=box, adapters=adapters)
        for box, adapters in ((left, ()), (right, (Adapter(files["everywhere"]), Adapter(files["text"]))))
    )
    request = GenerationRequest(prompt="", steps=1, seed=3, sampler="euler", regions=regions)
    plain = replace(request, regions=tuple(replace(region, adapters=()) for region in regions))
    with_adapters, without = banked.run(request).latents, banked.run(plain).latents
    middle = with_adapters.shape[-1] // 2
    assert_close(with_adapters[..., :middle], without[..., :middle])
    assert differs(with_adapters[..., middle:], without[..., middle:])
    assert_close(service.run(request).latents, with_adapters)


def test_a_stack_decides_what_acts_and_says_why(service, banked, files):
    first, second = Adapter(files["attention"], priority=2), Adapter(files["everywhere"], priority=1)
    stack = AdapterStack((second, first), strategy="priority")
    found = banked.run(replace(drawn(1), adapters=stack))
    assert any("attention and everywhere both change" in line for line in found.report.decisions)
    assert_close(found.latents, service.run(replace(drawn(1), adapters=stack)).latents)
    assert differs(found.latents, banked.run(drawn(1, first, second)).latents)
    summed = banked.run(replace(drawn(1), adapters=AdapterStack((second, first))))
    assert_close(summed.latents, banked.run(drawn(1, second, first)).latents)

    poor = AdapterStack((second, first), budget_bytes=first_bytes(banked, first))
    left = banked.run(replace(drawn(1), adapters=poor))
    assert_close(left.latents, banked.run(drawn(1, first)).latents)
    assert any("everywhere is off" in line for line in left.report.decisions)
    off = banked.run(replace(drawn(1), adapters=stack.with_enabled("everywhere", False)))
    assert_close(off.latents, left.latents)
    request = replace(drawn(1), adapters=poor)
    assert GenerationRequest.from_json(request.to_json()).to_json() == request.to_json()


def first_bytes(service, adapter):
    return service.adapters.library.get(adapter.source).size_bytes


def test_weights_are_merged_as_seldom_as_can_be(service, files):
    """Rows whose weights are merged go first: two kinds of rows take turns by the step and not by the row."""
    present = []

    def observe(event):
        present.append(service.adapters.kind(LoraKind).merged.present)

    loras = (Adapter(files["attention"]), Adapter(files["everywhere"]))
    drawn_with = {"steps": 3, "sampler": "euler", "guidance_scale": 1.0}
    requests = [
        GenerationRequest(prompt="a", seed=seed, adapters=(loras[seed % 2],), **drawn_with) for seed in range(4)
    ]
    service.generate_many(requests, observe=observe, limits=BatchLimits(rows=1))
    changes = sum(one != other for one, other in itertools.pairwise(present))
    assert changes <= 2, changes


def test_where_the_order_counts_the_report_says_so(service, files):
    dora, loha = Adapter(files["dora"]), Adapter(files["attention"])
    found = service.run(drawn(1, loha, dora)).report.decisions
    assert any("dora is computed from the base weights" in line for line in found)


def test_a_scale_of_zero_costs_nothing(banked, files):
    writes = banked.adapters.kind(LoraKind).bank.writes
    zero = banked.run(drawn(1, Adapter(files["other"], scale=0.0, name="zero")))
    assert torch.equal(zero.latents, banked.run(drawn(1)).latents)
    assert banked.adapters.kind(LoraKind).bank.writes == writes


def test_a_request_with_adapters_survives_json(files):
    region = Region(prompt="cat", box=(0, 0, 0.5, 1), adapters=(Adapter(files["text"]),))
    request = GenerationRequest(
        prompt="x", adapters=(Adapter(str(files["loha"]), scale=(0.0, 1.0), blocks={"*": 0.5}),), regions=(region,)
    )
    again = GenerationRequest.from_json(request.to_json())
    assert again.adapters == request.adapters
    assert again.to_json() == request.to_json()


def test_predictions_of_contexts_with_unlike_adapters_share_a_forward(service, banked, files):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 16, 16, generator=generator)
    text = torch.randn(2, 77, service.config.context_dim, generator=generator)

    def context(*adapters, **scales):
        return PredictionContext(
            latents=latents,
            timestep=500.0,
            text_embeddings=text[:1],
            negative_embeddings=text[1:],
            adapters=adapters,
            adapter_scales=scales,
        )

    contexts = [context(), context(Adapter(files["attention"])), context(Adapter(files["attention"]), attention=0.25)]
    together = banked.predict_noise(contexts)
    for one, found in zip(contexts, together, strict=True):
        assert_close(found, service.predict_noise(one))
    assert differs(together[1], together[0])
    assert differs(together[2], together[1])
    with pytest.raises(InvalidInput, match="adapter_capacity"):
        service.predict_noise(contexts)
    assert service.adapters.kind(LoraKind).merged.pristine_bytes == 0, "nothing stays merged"
    with pytest.raises(InvalidInput, match="style"):
        context(style=0.5)


BAD = [
    (lambda files: [Adapter(files["attention"]), Adapter(files["attention"])], InvalidInput, "attention twice"),
    (lambda files: [Adapter(files[n]) for n in ("attention", "everywhere", "other")], InvalidInput, "per_row"),
    (lambda files: [Adapter(files["loha"], residency="banked")], InvalidInput, "rank 25 .* capacity.rank = 16"),
    (lambda files: [Adapter(files["attention"], blocks={"upblocks.*": 1})], InvalidInput, "pattern of names where it"),
]


@pytest.mark.parametrize(("adapters", "error", "message"), BAD)
def test_what_cannot_be_is_refused_before_any_step(banked, files, adapters, error, message):
    with pytest.raises(error, match=message):
        banked.run(drawn(0, *adapters(files)), observe=lambda event: pytest.fail("a step was drawn"))


def test_files_that_do_not_fit_are_refused_before_any_step(service, banked, files, tmp_path):
    layers = {name: shape for name, shape in layers_of(service.unet).items() if is_attention(name)}
    wide = {name: (shape[0], 2048) if "attn2.to_k" in name else shape for name, shape in layers.items()}
    broken = kohya(layers)
    broken[next(name for name in broken if "lora_up" in name)][0, 0] = float("nan")
    before = banked.state.hash
    for tensors, error in ((kohya(wide), AdapterMismatch), (broken, DamagedWeights)):
        path = write(tmp_path / "bad.safetensors", tensors)
        with pytest.raises(error):
            banked.run(drawn(0, Adapter(path)))
    assert banked.state.hash == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": float("nan")}, "finite"),
        ({"scale": ()}, "a number"),
        ({"start": 0.6, "end": 0.5}, "start < end"),
        ({"blocks": {"*": float("inf")}}, "finite"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(InvalidInput, match=message):
        Adapter("x.safetensors", **settings)


def test_regions_by_attention_cannot_have_adapters(service, files):
    region = Region(prompt="cat", box=(0, 0, 0.5, 1), adapters=(Adapter(files["attention"]),))
    with pytest.raises(InvalidInput, match="estimates"):
        service.run(GenerationRequest(prompt="", regions=(region,), regions_by="attention"))


def test_a_picture_says_what_it_was_drawn_with(service, files):
    result = service.run(drawn(1, Adapter(files["dora"])))
    assert any(line.startswith("dora: added to the model's weights while it draws") for line in result.report.decisions)
    assert isinstance(result.images[0], Image.Image)
