"""The ports of a batch, from what acts in each of its rows: against the networks and pictures alone."""

from dataclasses import replace

import pytest
import torch

from tests.golden.minis import M9, M15, build, conditioning_for, latents_for, randomize
from undertow import UNet
from undertow.adapters.control.controlnet import ControlNet
from undertow.adapters.control.residuals import ControlRow, FeatureRow, residual_port
from undertow.adapters.image_prompt.image_port import ImagePromptRow, ImagePromptTokens, image_port
from undertow.engine.rows import Row
from undertow.unet.conditioning import Ports, Residuals

SIDE = 16
LEFT = (torch.arange(SIDE) < SIDE // 2).float().expand(1, 1, SIDE, SIDE)
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def unet():
    return build(M15).requires_grad_(False)


@pytest.fixture(scope="module")
def control(unet):
    network = ControlNet.from_unet(unet, (8,)).requires_grad_(False)
    randomize(network, 5)
    return network


@pytest.fixture(scope="module")
def hint(control):
    return control.embed_hint(torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3)))


def row(unet: UNet, seed: int = 1) -> Row:
    return Row(
        unet=unet,
        latents=latents_for(M15, SIDE, SIDE, batch=1, seed=seed),
        timestep=torch.tensor([500.0]),
        conditioning=conditioning_for(M15, batch=1, seed=seed),
    )


def alone(control: ControlNet, one: Row, hint: torch.Tensor) -> Residuals:
    return control(one.latents, one.timestep, one.conditioning, hint)


def acting(control: ControlNet, hint: torch.Tensor, **settings) -> ControlRow:
    return ControlRow(network=control, hint=hint, gains=(1.0,) * len(control.points), **settings)


def assert_close(found: torch.Tensor, expected: torch.Tensor):
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * expected.abs().max().item())


def test_each_row_gets_the_residuals_of_its_own_networks(unet, control, hint):
    rows = [row(unet, seed) for seed in (1, 2, 3)]
    twice = acting(control, hint)
    port = residual_port(rows, [[], [twice], [twice, twice]])
    for index, factor in enumerate((0, 1, 2)):
        expected = alone(control, rows[index], hint)
        for found, wanted in zip((*port.skips, port.middle), (*expected.skips, expected.middle), strict=True):
            torch.testing.assert_close(found[index : index + 1], factor * wanted, rtol=1e-4, atol=1e-4)


def test_a_mask_lets_a_network_act_in_its_area_alone(unet, control, hint):
    one = row(unet)
    port = residual_port([one, one], [[acting(control, hint)], [acting(control, hint, area=LEFT)]])
    whole, part = port.skips[0]
    assert_close(part, whole * LEFT[0])
    assert whole[:, :, SIDE // 2 :].abs().max() > 0.1


def test_of_an_inpainting_models_input_a_controlnet_reads_the_latents_alone(control, hint):
    one = row(build(M9))
    more = torch.cat([one.latents, torch.randn(1, 5, SIDE, SIDE)], dim=1)
    port = residual_port([replace(one, latents=more)], [[acting(control, hint)]])
    assert_close(port.middle, alone(control, one, hint).middle)


def test_residuals_of_a_pooling_network_are_their_means(unet, control, hint):
    pooling = ControlNet(replace(control.config, global_pool=True)).requires_grad_(False)
    pooling.load_state_dict(control.state_dict())
    one = row(unet)
    port, expected = residual_port([one], [[acting(pooling, hint)]]), alone(control, one, hint)
    for found, whole in zip((*port.skips, port.middle), (*expected.skips, expected.middle), strict=True):
        torch.testing.assert_close(found, whole.mean((2, 3), keepdim=True).expand_as(whole), rtol=1e-4, atol=1e-4)


def test_features_are_added_to_rows_that_have_them(unet):
    one, shapes = row(unet), unet.config.skip_shapes(SIDE, SIDE)
    running = tuple(torch.ones(1, *shape) if place == 2 else None for place, shape in enumerate(shapes))
    port = residual_port([one, one], [[], [FeatureRow(features=Residuals(running=running), gains=(0.5,))]])
    assert port.middle is None
    assert not port.skips
    assert port.running[2][:, 0, 0, 0].tolist() == [0, 0.5]


def test_where_nothing_acts_there_is_no_port(unet):
    assert residual_port([row(unet)], [[]]) is None
    assert image_port(unet.config, [[], []], torch.zeros(1)) is None


def test_pictures_of_unlike_lengths_share_a_batch(unet):
    rows = [row(unet, seed) for seed in (1, 2, 3)]
    pictures = [[], [seen(unet, 4, seed=1)], [seen(unet, 2, seed=2), seen(unet, 5, seed=3)]]
    together = predict(unet, rows, pictures)
    for index, one in enumerate(rows):
        assert_close(together[index : index + 1], predict(unet, [one], pictures[index : index + 1]))
    plain = predict(unet, rows, [[], [], []])
    assert (together - plain).abs().amax((1, 2, 3))[1:].min() > 0.01


def seen(unet: UNet, tokens: int, *, seed: int) -> ImagePromptRow:
    generator = torch.Generator().manual_seed(seed)
    return ImagePromptRow(
        sites={
            site: ImagePromptTokens(
                keys=torch.randn(1, tokens, width, generator=generator),
                values=torch.randn(1, tokens, width, generator=generator),
                gain=1.0,
            )
            for site, width in unet.config.cross_attentions().items()
        }
    )


def predict(unet: UNet, rows: list[Row], pictures: list[list[ImagePromptRow]]) -> torch.Tensor:
    latents = torch.cat([one.latents for one in rows])
    context = torch.cat([one.conditioning.context for one in rows])
    image = image_port(unet.config, pictures, latents)
    conditioning = replace(rows[0].conditioning, context=context)
    return unet(latents, torch.full((len(rows),), 500.0), conditioning, None if image is None else Ports(image=image))


def test_a_network_runs_on_as_many_rows_as_a_padded_forward_has(unet, control, hint):
    """Filled up with the first, so that each result is bit-equal whatever else is in the batch."""
    rows = [row(unet, seed) for seed in (1, 2, 3)]
    sizes = []
    hook = control.conv_in.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    one = acting(control, hint)
    together = residual_port(rows, [[one], [one], [one]])
    padded = residual_port(rows, [[one], [one], [one]], at_once=2)
    alone = residual_port(rows[2:], [[one]], at_once=2)
    hook.remove()
    assert sizes == [3, 2, 2, 2]
    for whole, parts, last in zip(
        (*together.skips, together.middle), (*padded.skips, padded.middle), (*alone.skips, alone.middle), strict=True
    ):
        assert_close(parts, whole)
        assert torch.equal(parts[2:], last)


def test_several_kinds_add_up(unet, control, hint):
    one, shapes = row(unet), unet.config.skip_shapes(SIDE, SIDE)
    places = [torch.ones(1, *shape) if place in (0, 2) else None for place, shape in enumerate(shapes)]
    features = FeatureRow(features=Residuals(running=tuple(places)), gains=(0.5, 0.25))
    plain = residual_port([one], [[acting(control, hint)]])
    both = residual_port([one], [[features, acting(control, hint), features]])
    for found, expected in zip((*both.skips, both.middle), (*plain.skips, plain.middle), strict=True):
        assert torch.equal(found, expected)
    assert [None if part is None else float(part.mean()) for part in both.running[:4]] == [1.0, None, 0.5, None]
    assert plain.running == ()


def test_pictures_act_where_their_areas_say_and_as_loudly_as_they_are(unet):
    """The rows beside them are not masked, and a row without a picture is silent."""
    site, width = next(iter(unet.config.cross_attentions().items()))
    loud, quiet = (seen(unet, 4, seed=seed).sites[site] for seed in (1, 2))
    area = LEFT.flatten(1)
    rows = [
        [ImagePromptRow(sites={site: replace(loud, gain=1.5, area=area)})],
        [ImagePromptRow(sites={site: replace(quiet, gain=0.5)})],
        [],
    ]
    port = image_port(unet.config, rows, torch.zeros(1, dtype=torch.bfloat16))
    assert set(port) == {site}
    (entry,) = port[site]
    assert entry.gain.tolist() == [1.5, 0.5, 0.0]
    assert entry.keys.shape == entry.values.shape == (3, 4, width)
    assert entry.keys.dtype == entry.values.dtype == torch.bfloat16
    assert entry.mask is None
    assert torch.equal(entry.area[:2].float(), torch.cat([area, torch.ones_like(area)]))
    assert torch.equal(entry.keys[0], loud.keys[0].bfloat16())
    assert torch.equal(entry.values[1], quiet.values[0].bfloat16())
    assert not entry.keys[2].any()


def test_shorter_pictures_are_padded_with_tokens_that_nobody_sees(unet):
    site = next(iter(unet.config.cross_attentions()))
    rows = [[ImagePromptRow(sites={site: seen(unet, tokens, seed=1).sites[site]})] for tokens in (2, 3)]
    (entry,) = image_port(unet.config, [*rows, []], torch.zeros(1))[site]
    assert entry.mask.tolist() == [[True, True, False], [True] * 3, [True] * 3]
    assert not entry.keys[0, 2].any()
    assert entry.area is None
