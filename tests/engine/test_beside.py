"""ControlNets and IP-Adapters of requests: mixed in one batch, placed on the canvas, refused when they cannot be."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from tests.adapters.beside import control_file, encoder_folder, half, picture, prompt_file, t2i_folder
from tests.adapters.lora.files import kohya, layers_of, write
from tests.golden.minis import randomize
from tests.services import service_of
from undertow import (
    Adapter,
    BatchLimits,
    GenerationRequest,
    InvalidInput,
    MissingComponent,
    PredictionContext,
    Region,
    UNet,
    UNetService,
    Views,
)
from undertow.errors import AdapterMismatch
from undertow.unet.config import CrossAttention

TOLERANCE = 1e-5
"""Of the latents' largest value, in float32: rows of a larger batch are summed in another order."""

EFFECT = 0.02
"""The least relative change of a picture's latents, or a comparison shows nothing."""


@pytest.fixture(scope="module")
def service():
    """With attention at the first level and none at the last, as in the published models: T2I-Adapters count on it."""
    model = service_of("sd1").model
    config = model.require_unet().config
    first, last = config.levels
    levels = (replace(first, attention=CrossAttention(heads=4)), replace(last, attention=None))
    unet = UNet(replace(config, levels=levels)).eval().requires_grad_(False)
    randomize(unet, 11)
    return UNetService(replace(model, unet=unet))


@pytest.fixture(scope="module")
def files(service, tmp_path_factory):
    folder, unet = tmp_path_factory.mktemp("beside"), service.unet
    return {
        "edges": control_file(folder / "edges", unet, seed=1),
        "pose": control_file(folder / "pose", unet, seed=2, loudness=0.5),
        "sketch": t2i_folder(folder / "sketch", unet, seed=5),
        "base": prompt_file(folder / "prompts" / "base.safetensors", unet, seed=3),
        "plus": prompt_file(folder / "prompts" / "plus.safetensors", unet, seed=4, variant="plus"),
        "lora": write(folder / "lora.safetensors", kohya(layers_of(unet), rank=4)),
    }


@pytest.fixture(scope="module")
def plain(service):
    """The latents without adapters, of each seed once."""
    return cache(lambda seed: service.run(drawn(seed)).latents)


def drawn(seed, *adapters, **settings):
    return GenerationRequest(prompt="red apple", seed=seed, steps=2, adapters=adapters, **settings)


def unlike_requests(files):
    edges, pose = Adapter(files["edges"], image=picture(1)), Adapter(files["pose"], image=picture(2), scale=0.7)
    sketch = Adapter(files["sketch"], image=picture(7), scale=0.5)
    base, plus = Adapter(files["base"], image=picture(3)), Adapter(files["plus"], image=picture(4), scale=0.8)
    return [
        drawn(0),
        drawn(1, Adapter(files["lora"])),
        drawn(0, edges),
        drawn(1, replace(edges, mask=half("left")), replace(pose, mask=half("right"))),
        drawn(0, base),
        drawn(1, replace(plus, image=(picture(5), picture(6)), mask=(half("left"), half("right")))),
        drawn(0, replace(edges, control_mode="control"), base, sketch),
        drawn(1, replace(sketch, mask=half("left"))),
        drawn(0, pose, plus, Adapter(files["lora"], scale=0.5)),
    ]


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * max(1.0, expected.abs().max().item()))


def differs(one, other):
    return float((one - other).norm() / other.norm()) > EFFECT


def test_nine_unlike_rows_equal_each_alone(service, files, plain):
    requests = unlike_requests(files)
    before = service.state.hash
    together = service.generate_many(requests)
    for request, result in zip(requests, together, strict=True):
        alone = service.run(request)
        assert_close(result.latents, alone.latents)
        assert differs(alone.latents, plain(request.seed)) == bool(request.adapters)
    assert together[0].report.rows >= 12, "all but those with a merged LoRA share batches"
    assert "base: IP-Adapter (4 tokens a picture), one picture" in together[4].report.decisions
    assert service.state.hash == before


def test_a_plain_row_is_bit_equal_to_the_base_at_the_same_row_count(service, files):
    limits = BatchLimits(padded_to=8)
    requests = [request for request in unlike_requests(files) if "lora" not in str(request.adapters)]
    together = service.generate_many(requests, limits=limits)
    assert torch.equal(together[0].latents, service.generate_many(requests[:1], limits=limits)[0].latents)
    others = [service.generate_many([request], limits=limits)[0] for request in requests[1:3]]
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(together[1:3], others, strict=True))


def test_reference_pictures_of_other_lengths_share_no_padded_forward(service, files):
    """The shorter tokens would be padded and masked, by another attention than they have alone."""
    pictures = picture(3), (picture(3), picture(4))
    one, two = (drawn(0, Adapter(files["base"], image=given)) for given in pictures)
    assert service.generate_many([one, two])[0].report.rows == 4
    assert service.generate_many([one, two], limits=BatchLimits(padded_to=4))[0].report.rows == 2


def test_a_network_runs_only_for_rows_and_steps_that_use_it(service, files):
    even = {"sampler": "euler", "sigmas": (10.0, 6.0, 3.0, 1.0, 0.0)}
    requests = [
        drawn(0, **even),
        drawn(1, Adapter(files["edges"], image=picture(1), start=0.25, end=0.75), **even),
        drawn(2, Adapter(files["edges"], image=picture(1), end=0.5, control_mode="control"), **even),
    ]
    service.run(requests[1])
    network = service.adapters.library.get(files["edges"]).network
    rows = []
    hook = network.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    service.generate_many(requests)
    hook.remove()
    assert rows == [1, 2 + 1, 2]


def test_a_network_of_a_padded_batch_is_padded_too(service, files):
    """Or what it says would have other last bits beside others."""
    request = drawn(1, Adapter(files["edges"], image=picture(1)))
    service.run(request)
    network, rows = service.adapters.library.get(files["edges"]).network, []
    hook = network.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    service.generate_many([drawn(0), request], limits=BatchLimits(padded_to=5))
    hook.remove()
    assert set(rows) == {5}


def test_control_is_weaker_by_scale_block_and_mode(service, files, plain):
    edges = Adapter(files["edges"], image=picture(1))
    base, whole = plain(1), service.run(drawn(1, edges)).latents
    for weaker in (replace(edges, scale=0.3), replace(edges, control_mode="prompt"), replace(edges, blocks={"s*": 0})):
        found = service.run(drawn(1, weaker)).latents
        assert differs(found, base)
        assert float((found - base).norm()) < float((whole - base).norm())
    off = service.run(drawn(1, replace(edges, blocks={"*": 0}))).latents
    assert torch.equal(off, base)


def test_pictures_act_where_their_masks_and_blocks_say(service, files, plain):
    both = Adapter(files["base"], image=(picture(5), picture(6)))
    together = service.run(drawn(1, both)).latents
    apart = service.run(drawn(1, replace(both, mask=(half("left"), half("right"))))).latents
    swapped = service.run(drawn(1, replace(both, mask=(half("right"), half("left"))))).latents
    assert differs(apart, together)
    assert differs(apart, swapped)
    middle = service.run(drawn(1, replace(both, blocks={"mid_block.*": 1, "*": 0}))).latents
    assert differs(middle, together)
    assert differs(middle, plain(1))


def test_windows_see_their_part_of_a_control_map(service, files):
    """Each window reads the hint that lies under it: a map that differs on the right changes only what windows there
    see, in a single step."""
    one, other = picture(1, 64, 32), picture(1, 64, 32)
    other.paste(picture(9, 16, 32), (48, 0))
    settings = {"size": (32, 64), "views": Views(window=32, overlap=0.0), "sampler": "euler", "sigmas": (10.0, 0.0)}
    found = [
        service.run(drawn(1, Adapter(files["edges"], image=image, scale=3.0), **settings)).latents
        for image in (one, other)
    ]
    assert torch.equal(found[0][..., :16], found[1][..., :16])
    right = [latents[..., 16:] for latents in found]
    assert (right[0] - right[1]).abs().max() > 1000 * TOLERANCE * right[0].abs().max()


def test_a_region_has_pictures_of_its_own(service, files):
    own = (Adapter(files["base"], image=picture(3)), Adapter(files["pose"], image=picture(2)))
    regions = (Region(prompt="cat", box=(0, 0, 0.5, 1)), Region(prompt="cat", box=(0.5, 0, 1, 1), adapters=own))
    request = GenerationRequest(prompt="", steps=1, seed=3, sampler="euler", regions=regions)
    plain = replace(request, regions=tuple(replace(region, adapters=()) for region in regions))
    found, without = service.run(request).latents, service.run(plain).latents
    middle = found.shape[-1] // 2
    assert_close(found[..., :middle], without[..., :middle])
    assert differs(found[..., middle:], without[..., middle:])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "edges: ControlNet, on both sides of guidance"),
        ({"guidance_scale": 1.0}, "edges: ControlNet"),
        ({"guidance_scale": 1.0, "sampler": "euler_cfg_pp"}, "edges: ControlNet, on both sides of guidance"),
        ({"guidance_scale": 1.0, "prompt": "owl AND apple:0.5"}, "edges: ControlNet, on both sides of guidance"),
    ],
)
def test_a_report_names_the_sides_of_guidance_that_there_are(service, files, settings, said):
    edges = Adapter(files["edges"], image=picture(3))
    request = {"prompt": "owl", "adapters": edges, "steps": 2, "size": 32, "dialect": "a1111", **settings}
    assert [line for line in service.generate(**request).report.decisions if line.startswith("edges: ")] == [said]


def test_predictions_take_hints_as_tensors(service, files):
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(2, 77, service.config.context_dim, generator=generator)

    def context(*adapters, **settings):
        return PredictionContext(
            latents=torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1)),
            timestep=500.0,
            text_embeddings=text[:1],
            negative_embeddings=text[1:],
            adapters=adapters,
            **settings,
        )

    hint = torch.rand(1, 3, 32, 32, generator=generator)
    edges, base = Adapter(files["edges"]), Adapter(files["base"], image=picture(3))
    contexts = [context(), context(edges, control_hints={"edges": hint}), context(base, adapter_scales={"base": 0.5})]
    together = service.predict_noise(contexts)
    for one, found in zip(contexts, together, strict=True):
        assert_close(found, service.predict_noise(one))
    assert differs(together[1], together[0])
    assert differs(together[2], together[0])
    # In guess mode the unconditional side sees no control: u + s (c - u) with the plain u.
    guess = {"control_hints": {"edges": hint}}
    aware = replace(edges, control_mode="control")
    conditional, seen = (
        service.predict_noise(context(guidance_scale=1.0)),
        service.predict_noise(context(aware, guidance_scale=1.0, **guess)),
    )
    unconditional = (together[0] - 7.5 * conditional) / (1 - 7.5)
    expected = unconditional + 7.5 * (seen - unconditional)
    found = service.predict_noise(context(aware, **guess))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * expected.abs().max().item())
    assert differs(found, together[1])
    broken = hint.clone()
    broken[0, 0, 0, 0] = float("nan")
    for bad, message in (
        ({"control_hints": {"edges": broken}}, "finite"),
        ({"control_hints": {"edges": hint[:, :, ::2]}}, r"\[1, 3, 32, 32\]"),
        ({"control_hints": {"pose": hint}}, "names of its adapters"),
        ({}, "control map"),
    ):
        with pytest.raises(InvalidInput, match=message):
            service.predict_noise(context(edges, **bad))


def test_a_request_with_pictures_survives_json(files, tmp_path):
    picture(1).save(tmp_path / "map.png")
    request = drawn(1, Adapter(str(files["edges"]), image=tmp_path / "map.png", control_mode="prompt"))
    json = request.to_json()
    assert GenerationRequest.from_json(json).to_json() == json
    picture(2).save(tmp_path / "map.png")
    with pytest.raises(InvalidInput, match="pixels differ"):
        GenerationRequest.from_json(json)
    hash_only = drawn(1, Adapter(str(files["edges"]), image=picture(1))).to_json(embed=False)
    with pytest.raises(InvalidInput, match="only size and hash are stored"):
        GenerationRequest.from_json(hash_only)


def bad_requests(files):
    edges, base = Adapter(files["edges"], image=picture(1)), Adapter(files["base"], image=picture(3))
    return [
        ((replace(edges, image=None),), InvalidInput, "one control map"),
        ((replace(edges, image=picture(1, 64, 32)),), InvalidInput, "undertow preprocess grid"),
        ((replace(edges, mask=half("left", 64, 32)),), InvalidInput, "shape of the picture to draw, 32x32"),
        ((replace(edges, mask=picture(1).point(lambda _: 0)),), InvalidInput, "black everywhere"),
        ((replace(edges, mask=(half("left"), half("right"))),), InvalidInput, "2 masks"),
        ((replace(edges, blocks={"skip.*": 0}),), InvalidInput, "names where it acts; e.g. skips"),
        ((replace(edges, encoder="x"),), InvalidInput, "nothing for a ControlNet"),
        ((Adapter(files["sketch"], image=picture(1), control_mode="prompt"),), InvalidInput, "none for a T2I-Adapter"),
        ((replace(base, image=None),), InvalidInput, "reference pictures"),
        ((replace(base, mask=(half("left"), half("right"))),), InvalidInput, "one for each image"),
        ((Adapter(files["lora"], image=picture(1)),), InvalidInput, "nothing for a LoRA"),
        ((edges, edges), InvalidInput, "edges twice"),
    ]


@pytest.mark.parametrize("index", range(12))
def test_what_cannot_be_is_refused_before_any_step(service, files, index):
    adapters, error, message = bad_requests(files)[index]
    with pytest.raises(error, match=message):
        service.run(drawn(0, *adapters), observe=lambda event: pytest.fail("a step was drawn"))


def test_a_wrong_or_missing_encoder_is_refused(service, files, tmp_path):
    other = encoder_folder(tmp_path / "encoder", seed=1, features=20)
    with pytest.raises(AdapterMismatch, match=r"24 wide.*20 wide"):
        service.run(drawn(0, Adapter(files["base"], image=picture(3), encoder=other)))
    alone = tmp_path / "alone" / "deep" / "base.safetensors"
    alone.parent.mkdir(parents=True)
    alone.write_bytes(files["base"].read_bytes())
    with pytest.raises(MissingComponent, match="encoder=FOLDER"):
        service.run(drawn(0, Adapter(alone, image=picture(3))))


def test_a_control_network_for_other_latents_is_refused(service, tmp_path):
    path = control_file(tmp_path / "eight", service.unet, seed=1, cell=8)
    with pytest.raises(InvalidInput, match="reads 128x128 pixels for 16x16 cells"):
        service.run(drawn(0, Adapter(path, image=picture(1))))
