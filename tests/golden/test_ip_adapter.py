"""IP-Adapters against diffusers: predictions of a U-Net with its attention processors. Cases I1 and I2."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders import IPAdapterMixin
from torch import Tensor, nn

from tests.adapters.image_prompt.files import FEATURES, PATCHES, TOKENS, VARIANTS, authors, flat, normal, write
from tests.encoders.test_image import PICTURES
from tests.encoders.test_image import save as save_encoder
from tests.few import few
from tests.golden.conftest import EFFECT, T0, change, largest_difference
from tests.golden.minis import (
    MINIS,
    TIMESTEPS,
    build,
    build_twin,
    conditioning_for,
    latents_for,
    pair,
    randomize,
    run_twin,
)
from tests.services import pipeline_folder
from undertow.adapters.adapter import Adapter
from undertow.adapters.image_prompt.encoder import load_image_encoder
from undertow.adapters.image_prompt.image_port import areas, combine
from undertow.adapters.image_prompt.image_prompt_file import read_image_prompt, write_image_prompt
from undertow.adapters.image_prompt.prompt import ImagePrompt
from undertow.adapters.image_prompt.sites import LAYOUT, STYLE, STYLE_AND_LAYOUT
from undertow.checkpoints.read.unet_loading import load_unet_folder
from undertow.encoders.image import ImageFeatures
from undertow.nn.attention import ImageTokens
from undertow.unet.conditioning import Conditioning, Ports
from undertow.unet.unet import UNet

BATCH = 2
SIZE = 16


class Attached(IPAdapterMixin):
    """What diffusers' pipelines are to their loader."""

    unet_name = "unet"

    def __init__(self, unet: nn.Module):
        self.unet = unet


def features_for(variant: str, pictures: int, seed: str = "features") -> Tensor:
    """[batch, pictures, ...] as diffusers takes them."""
    shape = (BATCH, pictures, FEATURES) if variant == "base" else (BATCH, pictures, PATCHES, FEATURES)
    return normal(*shape, seed=seed + variant)


def row_features(prompt: ImagePrompt, given: Tensor) -> ImageFeatures:
    return ImageFeatures(pooled=given) if prompt.wants == "pooled" else ImageFeatures(hidden=given)


def port_for(
    unet: UNet,
    prompt: ImagePrompt,
    features: Tensor,
    *,
    scale: float = 1.0,
    blocks: Mapping[str, float] | None = None,
    masks: Sequence[Tensor] | None = None,
    height: int = SIZE,
    width: int = SIZE,
) -> dict[str, tuple[ImageTokens, ...]]:
    """The image port of rows that have pictures of their own."""
    rows = [combine(prompt.tokens(row_features(prompt, row)), masks) for row in features]
    adapter = Adapter("unused", scale=scale, blocks=blocks)
    grids = unet.config.attention_grids(height, width)
    port: dict[str, tuple[ImageTokens, ...]] = {}
    for entries in zip(*rows, strict=True):
        keys_values = prompt.keys_values(torch.cat([entry.tokens for entry in entries]))
        where = None if entries[0].mask is None else areas(entries[0].mask, grids)
        for site, (keys, values) in keys_values.items():
            gain = torch.full((BATCH,), scale * adapter.factor(site))
            area = None if where is None else where[site].expand(BATCH, -1)
            port[site] = (*port.get(site, ()), ImageTokens(keys=keys, values=values, gain=gain, area=area))
    return port


def together(*ports: Mapping[str, tuple[ImageTokens, ...]]) -> dict[str, tuple[ImageTokens, ...]]:
    return {site: tuple(tokens for port in ports for tokens in port.get(site, ())) for site in ports[0]}


def predict(name: str, unet: UNet, image: Mapping[str, tuple[ImageTokens, ...]] | None, **size: int) -> Tensor:
    mini = MINIS[name]
    return unet(latents_for(mini, **size), TIMESTEPS, conditioning_for(mini), Ports(image=image))


def predict_twin(
    name: str,
    unet: UNet,
    adapters: Sequence[Mapping[str, dict[str, Tensor]]],
    features: Sequence[Tensor],
    *,
    scale: object = 1.0,
    masks: Sequence[Tensor] | None = None,
    **size: int,
) -> Tensor:
    mini = MINIS[name]
    twin = build_twin(mini, unet)
    twin._load_ip_adapter_weights(list(adapters))
    Attached(twin).set_ip_adapter_scale(scale)
    extra = {} if masks is None else {"cross_attention_kwargs": {"ip_adapter_masks": list(masks)}}
    given = {"image_embeds": list(features)}
    return run_twin(
        twin, latents_for(mini, **size), TIMESTEPS, conditioning_for(mini), added_cond_kwargs=given, **extra
    )


def read(tmp_path: Path, unet: UNet, nested: dict[str, dict[str, Tensor]], name: str = "ip") -> ImagePrompt:
    return read_image_prompt(write(tmp_path / f"{name}.safetensors", flat(nested)), unet)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", few(["M15", "MXL", "M21", "MRF"], 2))
def test_predictions_equal_diffusers(name, variant, tmp_path):
    unet, _ = pair(name)
    nested = authors(unet.config, variant)
    prompt = read(tmp_path, unet, nested)
    assert (prompt.variant, prompt.feature_dim) == (variant, FEATURES)
    features = features_for(variant, 1)
    assert prompt.tokens(row_features(prompt, features[0])).shape[1] == TOKENS[variant]
    ours = predict(name, unet, port_for(unet, prompt, features, scale=0.8))
    assert largest_difference(ours, predict_twin(name, unet, [nested], [features], scale=0.8)) <= T0
    assert change(ours, predict(name, unet, None)) > EFFECT


@pytest.mark.parametrize("name", ["M15", "MXL"])
def test_the_order_of_numbers_counts(name, tmp_path):
    """The file's numbers in the order of execution (down, middle, up) are another adapter: of equal shapes, so that
    nobody but the pictures would tell."""
    unet, _ = pair(name)
    nested = authors(unet.config)
    widths = [tensor.shape for tensor in nested["ip_adapter"].values()]
    last = max(int(key.split(".")[0]) for key in nested["ip_adapter"])
    same = [n for n in range(1, last, 2) if nested["ip_adapter"][f"{n}.to_k_ip.weight"].shape == widths[-1]]
    shuffled = {**nested, "ip_adapter": dict(nested["ip_adapter"])}
    moved = dict(zip([*same, last], [last, *same], strict=True))
    for number, source in moved.items():
        for leaf in ("to_k_ip", "to_v_ip"):
            shuffled["ip_adapter"][f"{number}.{leaf}.weight"] = nested["ip_adapter"][f"{source}.{leaf}.weight"]
    features = features_for("base", 1)
    right = predict(name, unet, port_for(unet, read(tmp_path, unet, nested), features))
    wrong = predict(name, unet, port_for(unet, read(tmp_path, unet, shuffled, "wrong"), features))
    assert change(wrong, right) > EFFECT


@pytest.mark.parametrize("name", ["M15", "MXL"])
def test_two_adapters_each_with_its_scale(name, tmp_path):
    unet, _ = pair(name)
    first, second = authors(unet.config, "base"), authors(unet.config, "plus", seed="second")
    features = [features_for("base", 1), features_for("plus", 2)]
    ports = [
        port_for(unet, read(tmp_path, unet, nested, kind), given, scale=scale)
        for nested, kind, given, scale in zip((first, second), ("base", "plus"), features, (0.6, 1.3), strict=True)
    ]
    ours = predict(name, unet, together(*ports))
    assert largest_difference(ours, predict_twin(name, unet, [first, second], features, scale=[0.6, 1.3])) <= T0
    assert change(ours, predict(name, unet, ports[0])) > EFFECT
    assert change(ours, predict(name, unet, ports[1])) > EFFECT


@pytest.mark.parametrize(
    ("blocks", "scale"),
    [
        (STYLE, {"up": {"block_0": [0.0, 1.0, 0.0]}}),
        (LAYOUT, {"down": {"block_2": [0.0, 1.0]}}),
        (STYLE_AND_LAYOUT, {"down": {"block_2": [0.0, 1.0]}, "up": {"block_0": [0.0, 1.0, 0.0]}}),
        ({"mid_block.*": 0.5, "up_blocks.1.*": 0.7, "*": 0}, {"mid": 0.5, "up": {"block_1": 0.7}}),
    ],
)
def test_blocks_are_diffusers_dictionaries_of_scales(blocks, scale, tmp_path):
    unet, _ = pair("MXL")
    nested, features = authors(unet.config, "plus"), features_for("plus", 1)
    ours = predict("MXL", unet, port_for(unet, read(tmp_path, unet, nested), features, blocks=blocks))
    assert largest_difference(ours, predict_twin("MXL", unet, [nested], [features], scale=scale)) <= T0
    assert change(ours, predict("MXL", unet, None)) > EFFECT / 10  # few of its cross-attentions act


def halves(height: int, width: int) -> list[Tensor]:
    """A mask of the left third, and a slope on the rest: [height, width] each."""
    left = torch.zeros(height, width)
    left[:, : width // 3] = 1
    return [left, (1 - left) * torch.linspace(0.2, 1, height)[:, None]]


@pytest.mark.parametrize("variant", ["base", "plus"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", few(["M15", "MXL"], 1))
def test_two_pictures_of_one_adapter(name, masked, variant, tmp_path):
    unet, _ = pair(name)
    nested, features = authors(unet.config, variant), features_for(variant, 2)
    prompt = read(tmp_path, unet, nested)
    masks = halves(48, 48) if masked else None
    given = None if masks is None else [torch.stack(masks)[None]]
    ours = predict(name, unet, port_for(unet, prompt, features, masks=masks))
    assert largest_difference(ours, predict_twin(name, unet, [nested], [features], masks=given)) <= T0
    everywhere = predict(name, unet, port_for(unet, prompt, features, masks=[torch.ones(48, 48)] * 2))
    assert change(ours, everywhere) > EFFECT


def test_masks_on_a_canvas_that_is_no_square(tmp_path):
    """16 x 32 cells divide at every level, so that diffusers guesses each grid right."""
    unet, _ = pair("M15")
    nested, features = authors(unet.config), features_for("base", 2)
    masks = halves(64, 128)
    port = port_for(unet, read(tmp_path, unet, nested), features, masks=masks, height=16, width=32)
    ours = predict("M15", unet, port, height=16, width=32)
    theirs = predict_twin("M15", unet, [nested], [features], masks=[torch.stack(masks)[None]], height=16, width=32)
    assert largest_difference(ours, theirs) <= T0


def test_masks_at_sizes_where_diffusers_guesses_wrong(tmp_path):
    """13 x 17 cells: a mask of ones is no mask at every level, and one of the left half leaves the right as it is in
    the first attention."""
    unet = build(MINIS["M15"])
    prompt, features = read(tmp_path, unet, authors(unet.config)), features_for("base", 1)
    ones = port_for(unet, prompt, features, masks=[torch.ones(104, 136)], height=13, width=17)
    plain = port_for(unet, prompt, features, height=13, width=17)
    ours = predict("M15", unet, ones, height=13, width=17)
    assert largest_difference(ours, predict("M15", unet, plain, height=13, width=17)) <= T0


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", few(["M15", "MXL"], 1))
def test_a_unet_that_diffusers_saved_with_adapters(name, variant, tmp_path):
    """Both adapters in it are read, each by its index, from tensors of other names."""
    unet, _ = pair(name)
    twin = build_twin(MINIS[name], unet)
    held = [authors(unet.config, "base"), authors(unet.config, variant, seed="second")]
    twin._load_ip_adapter_weights(held)
    twin.save_pretrained(tmp_path / "unet")
    for index, nested in enumerate(held):
        whole = read(tmp_path, unet, nested)
        prompt = read_image_prompt(tmp_path, unet, index=index)
        assert prompt.variant == whole.variant
        found = prompt.state_dict()
        for key, tensor in whole.state_dict().items():
            assert torch.equal(found[key], tensor), key


@pytest.mark.parametrize("variant", ["base", "plus"])
def test_diffusers_loads_what_is_written(variant, tmp_path):
    """With its encoder beside it: the same features, the same tokens of no picture (case I3), the same prediction."""
    folder = pipeline_folder("sd1")
    unet = load_unet_folder(folder)
    save_encoder(tmp_path / "adapter" / "image_encoder")
    encoder = load_image_encoder(tmp_path / "adapter" / "image_encoder")
    width = encoder.pooled_dim if variant == "base" else encoder.hidden_dim
    made = ImagePrompt.new(unet, width, variant=variant, tokens=4 if variant == "base" else 5, width=64)
    randomize(made, seed=3)
    write_image_prompt(made, tmp_path / "adapter" / "ip.safetensors")
    prompt = read_image_prompt(tmp_path / "adapter" / "ip.safetensors", unet)
    prompt.require_encoder(encoder)

    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.load_ip_adapter(str(tmp_path / "adapter"), subfolder="", weight_name="ip.safetensors")
    picture = PICTURES[0]
    embeds = pipeline.prepare_ip_adapter_image_embeds(picture, None, "cpu", 1, True)
    theirs = pipeline.unet.encoder_hid_proj(embeds)[0]
    tokens = torch.cat([prompt.tokens(prompt.nothing(encoder)), prompt.tokens(encoder.encode([picture]))])
    assert largest_difference(tokens, theirs[:, 0]) <= T0

    latents, context = normal(2, 4, 8, 8, seed="l"), normal(2, 7, 768, seed="c")
    given = {"image_embeds": embeds}
    reference = pipeline.unet(latents, TIMESTEPS, encoder_hidden_states=context, added_cond_kwargs=given).sample
    pairs = prompt.keys_values(tokens)
    port = {site: (ImageTokens(keys=k, values=v, gain=torch.ones(2)),) for site, (k, v) in pairs.items()}
    ours = unet(latents, TIMESTEPS, Conditioning(context=context), Ports(image=port))
    assert largest_difference(ours, reference) <= T0
    assert change(ours, unet(latents, TIMESTEPS, Conditioning(context=context))) > EFFECT
