"""Maps of adapters by block, against weights written out."""

import pytest
import torch
from PIL import Image

from tests.adapters.lora.files import is_attention, layers_of
from tests.adapters.stacks import summary
from undertow import Adapter, InvalidInput
from undertow.adapters.lora.weight_dependent import WeightDecomposed
from undertow.inspection.conflict_figure import block_of, pairwise_cosines, relative_sizes, save_figure

CLOSE = 1e-5
"""Relative, of norms in float32."""


def summaries_of(service, files, **scales):
    adapters = [Adapter(files[name], scale=scale) for name, scale in scales.items()]
    return service.adapters.summarize(adapters)


def test_sizes_are_those_of_the_weights_with_and_without(service, files):
    summaries = summaries_of(service, files, style=0.5, texture=-2.0)
    found = relative_sizes(summaries, service.unet)
    assert found.columns == ("style", "texture")
    assert found.blocks == tuple(service.config.layer_names())
    for column, each in enumerate(summaries):
        changed = dict.fromkeys(each.layers.updates, each.scaled)
        for row, block in enumerate(found.blocks):
            weights = {
                name: module.weight.detach().double()
                for name, module in service.unet.named_modules()
                if getattr(module, "weight", None) is not None and block_of(name) == block
            }
            whole = sum(weight.square().sum() for weight in weights.values())
            differences = [
                (changed[name].layers.updates[name].weight(weight.float(), changed[name].gain).double() - weight)
                for name, weight in weights.items()
                if name in changed
            ]
            if not differences:
                assert found.values[row, column].isnan()
                continue
            expected = (sum(difference.square().sum() for difference in differences) / whole) ** 0.5
            assert float(found.values[row, column]) == pytest.approx(float(expected), rel=1e-3)
            assert float(expected) > 0.01


def test_parallel_changes_have_cosine_one_and_strangers_none(service, files):
    summaries = summaries_of(service, files, style=1.0, louder=-0.5, texture=1.0)
    found = pairwise_cosines(summaries, service.unet)
    assert found.columns == ("style · louder",), "the others share no layer"
    numbers = found.values[~found.values.isnan()]
    assert len(numbers) > 2
    torch.testing.assert_close(numbers, torch.full_like(numbers, -1.0), rtol=0, atol=CLOSE)


def test_changes_that_look_at_the_weight_are_in_both_maps(service, files):
    (style,) = summaries_of(service, files, style=1.0)
    layers = layers_of(service.unet, is_attention)
    turned = {
        name: WeightDecomposed(inner=style.layers.updates[name], magnitude=torch.full((shape[0],), 2.0))
        for name, shape in layers.items()
    }
    dora = summary("dora", turned)
    sizes, cosines = relative_sizes([style, dora], service.unet), pairwise_cosines([style, dora], service.unet)
    row = next(index for index, block in enumerate(sizes.blocks) if block.startswith("mid_block.attentions"))
    assert float(sizes.values[row, 1]) > 0.01
    update, name = next((turned[name], name) for name in turned if name.startswith("mid_block"))
    weight = service.unet.get_submodule(name).weight.detach()
    difference = update.weight(weight, 1.0) - weight
    assert float(difference.norm()) > 0
    assert -1 < float(cosines.values[row, 0]) < 1


def test_the_picture_has_blocks_and_columns(service, files, tmp_path):
    summaries = summaries_of(service, files, style=1.0, louder=0.5, texture=1.0)
    sizes, cosines = relative_sizes(summaries, service.unet), pairwise_cosines(summaries, service.unet)
    path = tmp_path / "deep" / "map.png"
    save_figure(sizes, cosines, path, "three")
    with Image.open(path) as picture:
        assert picture.width > 600
        assert len(set(picture.convert("RGB").get_flattened_data())) > 50
    alone = summaries_of(service, files, style=1.0)
    save_figure(relative_sizes(alone, service.unet), pairwise_cosines(alone, service.unet), path, "one")
    text = summaries_of(service, files, text=1.0)
    with pytest.raises(InvalidInput, match="a LoRA among them"):
        save_figure(relative_sizes(text, service.unet), pairwise_cosines(text, service.unet), path, "none")


@pytest.mark.parametrize(
    ("layer", "block"),
    [
        ("down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q", "down_blocks.0.attentions.1"),
        ("up_blocks.2.upsamplers.0.conv", "up_blocks.2.upsamplers.0"),
        ("mid_block.resnets.1.conv1", "mid_block.resnets.1"),
        ("time_embedding.linear_1", "time_embedding"),
        ("conv_out", "conv_out"),
    ],
)
def test_layers_belong_to_blocks(layer, block):
    assert block_of(layer) == block
