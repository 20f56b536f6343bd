"""PredictionContext (R19-R21, R33, R37, R38): one forward for all branches and contexts, guidance by the formula."""

import pytest
import torch

from undertow import Conditioning, InvalidInput, UNet, UNetConfig
from undertow.engine.context import PredictionContext, predict_noise
from undertow.unet.config import CrossAttention, Level, Middle

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
