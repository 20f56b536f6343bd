"""PredictionContext (R19-R21, R33, R37, R38): one forward for all branches and contexts, guidance by the formula."""

from dataclasses import replace

import pytest
import torch

from undertow import Adapter, Conditioning, InvalidInput, UNet, UNetConfig
from undertow.engine.context import PredictionContext, predict_noise
from undertow.unet.config import CrossAttention, Level, Middle, TextTime

TOLERANCE = 1e-5  # float32; the same rows computed in batches of another size


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    config = UNetConfig(
        levels=(Level(channels=16, attention=CrossAttention(heads=2)), Level(channels=32)),
        middle=Middle(attention=CrossAttention(heads=2)),
        context_dim=12,
        norm_groups=8,
        sample_size=8,
    )
    unet = UNet(config).eval()
    for parameter in unet.parameters():
        parameter.data.normal_(std=0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5)
    return unet.requires_grad_(requires_grad=False)


def context(seed, *, rows=1, tokens=7, negative_tokens=7, **settings):
    generator = torch.Generator().manual_seed(seed)
    return PredictionContext(
        latents=torch.randn(rows, 4, 8, 8, generator=generator),
        timestep=100 * seed + 7,
        text_embeddings=torch.randn(1, tokens, 12, generator=generator),
        negative_embeddings=torch.randn(1, negative_tokens, 12, generator=generator),
        **settings,
    )


def by_hand(unet, c, scale):
    rows = len(c.latents)
    timesteps = torch.full((rows,), float(c.timestep))
    run = [
        unet(c.latents, timesteps, Conditioning(context=text.expand(rows, -1, -1)))
        for text in (c.negative_embeddings, c.text_embeddings)
    ]
    return run[0] + scale * (run[1] - run[0])


@pytest.mark.parametrize("negative_tokens", [7, 14])
def test_one_forward_predicts_what_two_do_by_hand(unet, negative_tokens):
    c = context(1, rows=2, negative_tokens=negative_tokens, guidance_scale=7.5)

    (found,) = predict_noise(unet, [c])

    expected = by_hand(unet, c, 7.5)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * 7.5 * expected.abs().max().item())
    assert (found - by_hand(unet, c, 1.0)).abs().max() > 0.1


def test_prepared_inputs_are_the_arguments_of_a_forward_and_guidance_combines_its_rows(unet):
    c = context(2, rows=3, guidance_scale=3.0)

    inputs = c.prepare_inputs()
    found = c.apply_guidance(unet(**inputs))

    assert inputs["latents"].shape[0] == inputs["timesteps"].shape[0] == 6
    torch.testing.assert_close(found, by_hand(unet, c, 3.0), rtol=0, atol=TOLERANCE * 10)


def test_scale_one_computes_no_unconditional_row():
    assert context(1, rows=2, guidance_scale=1.0).prepare_inputs()["latents"].shape[0] == 2


def test_a_list_of_contexts_runs_in_one_forward_and_gives_each_its_own(unet):
    contexts = [context(1), context(2, rows=2, guidance_scale=1.0), context(3, tokens=14, guidance_scale=2.0)]
    calls = []
    hook = unet.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    together = predict_noise(unet, contexts)
    hook.remove()

    assert calls == [2 + 2 + 2]
    for c, found in zip(contexts, together, strict=True):
        torch.testing.assert_close(found, predict_noise(unet, [c])[0], rtol=0, atol=TOLERANCE * 10)


def test_no_context_needs_no_forward(unet):
    hook = unet.register_forward_pre_hook(lambda *_: pytest.fail("ran"))
    assert predict_noise(unet, []) == []
    hook.remove()


@pytest.mark.parametrize(
    ("build", "argument"),
    [
        (lambda: context(1, control_hints={"canny": torch.zeros(1)}), "control_hints"),
        (lambda: context(1, adapter_scales={"style": 0.5}), "adapter_scales"),
        (lambda: PredictionContext(latents=torch.zeros(1, 4, 8, 8), timestep=1, text_embeddings=torch.zeros(1, 7, 12)),
         "negative_embeddings"),
        (lambda: context(1, rows=3, pooled=torch.zeros(2, 5)).prepare_inputs(), "pooled"),
        (lambda: context(1, guidance_scale=float("nan")), "guidance scale"),
    ],
)  # fmt: skip
def test_what_cannot_be_predicted_is_refused_by_name(build, argument):
    with pytest.raises(InvalidInput) as refusal:
        build()
    assert refusal.value.argument == argument


def test_contexts_of_different_sizes_cannot_share_a_forward(unet):
    other = PredictionContext(
        latents=torch.zeros(1, 4, 4, 4), timestep=1, text_embeddings=torch.zeros(1, 7, 12), guidance_scale=1.0
    )
    with pytest.raises(InvalidInput, match="one size for all contexts"):
        predict_noise(unet, [context(1), other])


@pytest.fixture(scope="module")
def told():
    """A network that reads pooled text and six numbers as well."""
    torch.manual_seed(1)
    config = UNetConfig(
        levels=(Level(channels=16, attention=CrossAttention(heads=2)),),
        middle=Middle(attention=CrossAttention(heads=2)),
        context_dim=12,
        norm_groups=8,
        added=TextTime(pooled_dim=5, sinusoid_dim=4),
    )
    unet = UNet(config).eval()
    for parameter in unet.parameters():
        parameter.data.normal_(std=0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5)
    return unet.requires_grad_(requires_grad=False)


def test_pooled_texts_and_numbers_go_with_their_side_of_guidance(told):
    generator = torch.Generator().manual_seed(4)
    pooled, negative, ids = (torch.rand(rows, width, generator=generator) for rows, width in ((2, 5), (1, 5), (1, 6)))
    c = context(1, rows=2, pooled=pooled, negative_pooled=negative, time_ids=ids, guidance_scale=3.0)
    (found,) = predict_noise(told, [c])
    sides = [
        told(
            c.latents,
            torch.full((2,), float(c.timestep)),
            Conditioning(context=text.expand(2, -1, -1), pooled=given.expand(2, -1), time_ids=ids.expand(2, -1)),
        )
        for text, given in ((c.negative_embeddings, negative), (c.text_embeddings, pooled))
    ]
    expected = sides[0] + 3 * (sides[1] - sides[0])
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * 10)


def test_every_row_may_have_a_timestep_of_its_own(unet):
    c = context(1, rows=2, guidance_scale=1.0)
    apart = replace(c, timestep=torch.tensor([100, 900]))
    (found,) = predict_noise(unet, [apart])
    assert apart.prepare_inputs()["timesteps"].tolist() == [100, 900]
    assert replace(apart, guidance_scale=2.0).prepare_inputs()["timesteps"].tolist() == [100, 900] * 2
    for row, timestep in enumerate((100.0, 900.0)):
        given = Conditioning(context=c.text_embeddings)
        expected = unet(c.latents[row : row + 1], torch.tensor([timestep]), given)
        torch.testing.assert_close(found[row : row + 1], expected, rtol=0, atol=TOLERANCE * 10)


def test_the_guidance_scale_is_7_5_unless_it_is_said():
    c = context(1)
    assert c.guidance_scale == 7.5
    assert context(1, guidance_scale=1.0).guidance.branches == ("conditional",)
    assert c.guidance.branches == ("unconditional", "conditional")
    rows = torch.stack([torch.zeros(4, 8, 8), torch.ones(4, 8, 8)])
    assert c.apply_guidance(rows).eq(7.5).all()


def test_adapters_act_at_the_scales_of_the_call_at_any_time():
    """A prediction has no steps: a schedule is at its first entry, and nothing is too early or late."""
    style = Adapter("style.safetensors", scale=(0.25, 1.0), start=0.3, end=0.6)
    other = Adapter("other.safetensors", scale=0.5)
    c = context(1, adapters=(style, other), adapter_scales={"other": -2.0})
    found = [(one.title, one.scale, one.start, one.end) for one in c.scaled_adapters]
    assert found == [("style", 0.25, 0.0, 1.0), ("other", -2.0, 0.0, 1.0)]


@pytest.mark.parametrize(
    ("settings", "argument", "message"),
    [
        ({"adapter_scales": {"style": float("inf")}}, "adapter_scales['style']", "a finite number"),
        ({"adapter_scales": {"other": 1.0}}, "adapter_scales", "names of its adapters: style"),
        ({"control_hints": {"other": torch.zeros(1, 3, 8, 8)}}, "control_hints", "names of its adapters: style"),
        ({"control_hints": {"style": torch.zeros(1, 1, 8, 8)}}, "control_hints['style']", r"\[1, 3, height, width\]"),
        ({"control_hints": {"style": torch.zeros(2, 3, 8, 8)}}, "control_hints['style']", r"\[1, 3, height, width\]"),
        ({"control_hints": {"style": torch.zeros(3, 8, 8)}}, "control_hints['style']", r"\[1, 3, height, width\]"),
    ],
)
def test_scales_and_hints_are_checked_against_the_adapters(settings, argument, message):
    with pytest.raises(InvalidInput, match=message) as refusal:
        context(1, adapters=(Adapter("style.safetensors"),), **settings)
    assert refusal.value.argument == argument


def test_rows_that_are_neither_one_nor_as_many_as_pictures_are_refused():
    texts = torch.zeros(2, 7, 12)
    c = PredictionContext(latents=torch.zeros(3, 4, 8, 8), timestep=1, text_embeddings=texts, guidance_scale=1.0)
    with pytest.raises(InvalidInput, match="2 rows, expected 1 row or 3, one for each picture") as refusal:
        c.prepare_inputs()
    assert refusal.value.argument == "text_embeddings"
