"""IP-Adapters read from every form of file, and what their features become."""

import pytest
import torch

from tests.adapters.image_prompt.files import FEATURES, PATCHES, TOKENS, VARIANTS, authors, flat, normal, write
from tests.golden.minis import M15, build, pair
from undertow.adapters.image_prompt.image_prompt_file import read_image_prompt, write_image_prompt
from undertow.adapters.image_prompt.projection import PUBLISHED_AT, BaseProjection
from undertow.adapters.image_prompt.prompt import ImagePrompt
from undertow.adapters.image_prompt.sites import LAYOUT, STYLE, STYLE_AND_LAYOUT, site_numbers
from undertow.checkpoints.files.place import is_hub_id
from undertow.encoders.image import ImageFeatures
from undertow.encoders.image_config import PUBLISHED_VISION
from undertow.errors import AdapterMismatch, InvalidInput
from undertow.unet.config import UNetConfig
from undertow.unet.presets import PRESETS

HALF = 2e-3
"""Relative error of float16's rounding, through a few layers."""


def same_tensors(one: ImagePrompt, other: ImagePrompt) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize(
    ("preset", "ranges"),
    [
        ("sd15", {"down_blocks.0": (1, 3), "down_blocks.2": (9, 11), "up_blocks.1": (13, 17), "mid_block": (31, 31)}),
        (
            "sdxl",
            {"down_blocks.1": (1, 7), "up_blocks.0": (49, 107), "up_blocks.1": (109, 119), "mid_block": (121, 139)},
        ),
        ("sdxl-refiner", {"down_blocks.1": (1, 15), "up_blocks.2": (57, 79), "mid_block": (81, 87)}),
    ],
)
def test_numbers_go_down_up_and_to_the_middle(preset, ranges):
    numbers = site_numbers(PRESETS[preset]())
    for stage, (first, last) in ranges.items():
        found = [number for number, site in numbers.items() if site.startswith(f"{stage}.")]
        assert (found[0], found[-1]) == (first, last)
    assert list(numbers) == list(range(1, 2 * len(numbers), 2))


def test_style_and_layout_of_sdxl():
    sites = UNetConfig.sdxl().cross_attentions()
    from undertow.adapters.adapter import Adapter

    acting = {
        name: {site.rsplit(".transformer", 1)[0] for site in sites if Adapter("x", blocks=blocks).factor(site)}
        for name, blocks in (("style", STYLE), ("layout", LAYOUT), ("both", STYLE_AND_LAYOUT))
    }
    assert acting["style"] == {"up_blocks.0.attentions.1"}
    assert acting["layout"] == {"down_blocks.2.attentions.1"}
    assert acting["both"] == acting["style"] | acting["layout"]


@pytest.mark.parametrize(("preset", "tensors", "numbers"), [("sd15", 32, 19_169_280), ("sdxl", 140, 340_787_200)])
def test_published_sizes(preset, tensors, numbers):
    config = PRESETS[preset]()
    with torch.device("meta"):
        prompt = ImagePrompt(config, BaseProjection(1024, config.context_dim, 4))
    matrices = list(prompt.ip_adapter.parameters())
    assert (len(matrices), sum(one.numel() for one in matrices)) == (tensors, numbers)


@pytest.mark.parametrize("variant", VARIANTS)
def test_pickles_of_two_dictionaries_and_safetensors_are_the_same_adapter(variant, tmp_path):
    unet, _ = pair("M15")
    nested = authors(unet.config, variant)
    torch.save(nested, tmp_path / "ip.bin")
    pickled = read_image_prompt(tmp_path / "ip.bin", unet)
    whole = read_image_prompt(write(tmp_path / "ip.safetensors", flat(nested)), unet)
    assert same_tensors(pickled, whole)
    assert pickled.path.name == "ip.bin"
    assert pickled.content_hash != whole.content_hash
    assert whole.size_bytes == sum(tensor.nbytes for tensor in flat(nested).values())


def test_a_folder_and_the_names_of_the_authors_trainer(tmp_path):
    unet, _ = pair("M15")
    tensors = flat(authors(unet.config))
    trained = {
        name.replace("image_proj.", "image_proj_model.").replace("ip_adapter.", "adapter_modules."): tensor
        for name, tensor in tensors.items()
    }
    (tmp_path / "run").mkdir()
    write(tmp_path / "run" / "step-100.safetensors", trained)
    whole = read_image_prompt(write(tmp_path / "ip.safetensors", tensors), unet)
    assert same_tensors(read_image_prompt(tmp_path / "run", unet), whole)


def test_it_is_read_in_the_models_type(tmp_path):
    unet = build(M15).to(torch.bfloat16)
    prompt = read_image_prompt(write(tmp_path / "ip.safetensors", flat(authors(unet.config, "plus"))), unet)
    tokens = prompt.tokens(ImageFeatures(hidden=normal(3, PATCHES, FEATURES, seed="seen")))
    assert tokens.dtype == torch.bfloat16
    assert tokens.shape == (3, TOKENS["plus"], unet.config.context_dim)
    keys_values = prompt.keys_values(tokens)
    assert list(keys_values) == list(prompt.sites.values())
    assert set(keys_values) == set(unet.config.cross_attentions())
    for site, width in unet.config.cross_attentions().items():
        assert [one.shape for one in keys_values[site]] == [(3, TOKENS["plus"], width)] * 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_written_is_read_again(variant, tmp_path):
    unet, _ = pair("MXL")
    torch.manual_seed(0)
    prompt = ImagePrompt.new(unet, FEATURES, variant=variant, tokens=7, width=64 if variant == "plus" else None)
    write_image_prompt(prompt, tmp_path / "new" / "ip.safetensors", notes={"modelspec.title": "trained"})
    again = read_image_prompt(tmp_path / "new" / "ip.safetensors", unet)
    assert (again.variant, again.tokens_per_image, again.feature_dim) == (variant, 7, FEATURES)
    given = normal(2, FEATURES, seed="f") if variant == "base" else normal(2, 7, FEATURES, seed="f")
    features = ImageFeatures(pooled=given) if variant == "base" else ImageFeatures(hidden=given)
    ours, theirs = prompt.tokens(features).detach(), again.tokens(features)
    assert float((ours - theirs).abs().max()) <= HALF * float(ours.abs().max())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_new_adapter_reads_pictures_as_the_model_reads_text_and_learns(variant):
    unet, _ = pair("M15")
    torch.manual_seed(0)
    prompt = ImagePrompt.new(unet, FEATURES, variant=variant)
    for number, site in prompt.sites.items():
        layer = unet.get_submodule(site)
        for leaf in ("to_k", "to_v"):
            ours = prompt.get_parameter(f"ip_adapter.{number}.{leaf}_ip.weight")
            assert torch.equal(ours, layer.get_submodule(leaf).weight)
            assert ours.data_ptr() != layer.get_submodule(leaf).weight.data_ptr()
    given = normal(2, FEATURES, seed="f") if variant == "base" else normal(2, PATCHES, FEATURES, seed="f")
    features = ImageFeatures(pooled=given) if variant == "base" else ImageFeatures(hidden=given)
    with torch.enable_grad():
        pairs = prompt.keys_values(prompt.tokens(features)).values()
        sum((keys**2).sum() + (values**2).sum() for keys, values in pairs).backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in prompt.parameters())


def test_a_new_adapter_needs_a_model_that_reads_text():
    with pytest.raises(InvalidInput, match="unet is without cross-attention"):
        ImagePrompt.new(pair("MPIX")[0], FEATURES)
    with pytest.raises(InvalidInput, match="tokens is 0, expected at least 1"):
        ImagePrompt.new(pair("M15")[0], FEATURES, tokens=0)


def test_values_that_float16_cannot_hold_are_not_written(tmp_path):
    prompt = ImagePrompt.new(pair("M15")[0], FEATURES)
    with torch.no_grad():
        prompt.get_parameter("image_proj.proj.weight")[0, 0] = 1e6
    with pytest.raises(InvalidInput, match=r"not finite in torch\.float16 at image_proj\.proj\.weight"):
        write_image_prompt(prompt, tmp_path / "ip.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_of_another_encoder_are_refused(variant):
    prompt = ImagePrompt.new(pair("M15")[0], FEATURES, variant=variant)
    with pytest.raises(InvalidInput, match="features is without"):
        prompt.tokens(ImageFeatures())
    wrong = ImageFeatures(pooled=torch.zeros(1, 50), hidden=torch.zeros(1, 2, 50))
    part = "projection is" if variant == "base" else "hidden states are"
    with pytest.raises(
        AdapterMismatch, match=f"{FEATURES} wide, and those given are 50 wide; give an encoder whose {part}"
    ):
        prompt.tokens(wrong)


@pytest.mark.parametrize(
    ("variant", "width", "encoder"),
    [
        ("base", 1024, r"ViT-H/14 \(h94/IP-Adapter/models/image_encoder/"),
        ("base", 1280, r"ViT-bigG/14 \(h94/IP-Adapter/sdxl_models/image_encoder/"),
        ("plus", 1280, "ViT-H/14"),
        ("full", 1664, "ViT-bigG/14"),
        ("plus", 1024, "OpenAI CLIP ViT-L/14"),
        ("base", 768, "OpenAI CLIP ViT-L/14"),
    ],
)
def test_the_right_encoder_is_named(variant, width, encoder):
    prompt = ImagePrompt.new(pair("M15")[0], width, variant=variant)
    with pytest.raises(AdapterMismatch, match=encoder):
        prompt.tokens(ImageFeatures(pooled=torch.zeros(1, 640), hidden=torch.zeros(1, 2, 640)))


def test_published_encoders_have_an_address_that_can_be_given():
    assert PUBLISHED_AT.keys() == PUBLISHED_VISION.keys()
    assert all(is_hub_id(place) for place in PUBLISHED_AT.values())
