"""Image encoders against transformers' own, and every place where one is found."""

import io
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.adapters.image_prompt.files import authors, flat, write
from tests.encoders.minis import randomize
from tests.golden.minis import pair
from undertow.adapters.image_prompt.encoder import load_image_encoder
from undertow.adapters.image_prompt.image_prompt_file import read_image_prompt
from undertow.encoders.image import ImageEncoder
from undertow.encoders.image_config import (
    PUBLISHED_VISION,
    ClipVisionConfig,
    published_vision_config,
    vision_config_from_transformers,
)
from undertow.encoders.image_pixels import Preprocessing
from undertow.errors import (
    AdapterMismatch,
    ConfigError,
    CorruptFile,
    InvalidInput,
    KeyMismatch,
    MissingComponent,
    UnknownCheckpoint,
    UnsupportedModel,
)

SIDE, PATCH, WIDTH, PROJECTED, LAYERS = 28, 7, 32, 24, 3
PATCHES = 1 + (SIDE // PATCH) ** 2

BATCHING = 1e-4
"""Two rows are summed in another order than one, and pixels are rounded once more."""

ROUNDING = 1e-6
"""Pixels here are scaled in float32, by transformers in float64 and then rounded."""


@cache
def reference(activation: str = "gelu") -> CLIPVisionModelWithProjection:
    """transformers' network with random weights; shared between tests, so never changed."""
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=PROJECTED,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        hidden_act=activation,
        layer_norm_eps=1e-4,
    )
    network = CLIPVisionModelWithProjection(config)
    randomize(network, seed=len(activation))
    return network.eval()


def save(folder: Path, activation: str = "gelu", *, processor: dict[str, object] | None = None) -> Path:
    reference(activation).save_pretrained(folder)
    if processor is not None:
        CLIPImageProcessorPil(**processor).save_pretrained(folder)
    return folder


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


PICTURES = [picture(60, 40), picture(31, 77, seed=1), picture(28, 28, "L", seed=2), picture(500, 300, "P", seed=3)]


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_features_are_those_of_transformers(activation, tmp_path):
    encoder = load_image_encoder(save(tmp_path, activation))
    pixels = CLIPImageProcessorPil(size=SIDE, crop_size=SIDE)(PICTURES, return_tensors="pt").pixel_values
    with torch.no_grad():
        theirs = reference(activation)(pixels, output_hidden_states=True)
        ours = encoder(pixels)
        assert torch.equal(ours.pooled, theirs.image_embeds)
        assert torch.equal(ours.hidden, theirs.hidden_states[-2])
    assert ours.hidden.shape == (len(PICTURES), PATCHES, WIDTH)
    assert encoder.config.tokens == PATCHES
    assert (encoder.pooled_dim, encoder.hidden_dim) == (PROJECTED, WIDTH)
    seen = encoder.encode(PICTURES)
    assert torch.allclose(seen.pooled, ours.pooled, atol=BATCHING)
    assert float((seen.pooled[0] - seen.pooled[1]).abs().max()) > 0.1


def test_nothing_is_an_all_zero_tensor_and_not_a_black_picture(tmp_path):
    encoder = load_image_encoder(save(tmp_path))
    with torch.no_grad():
        theirs = reference()(torch.zeros(2, 3, SIDE, SIDE), output_hidden_states=True)
    nothing = encoder.nothing(2)
    assert torch.allclose(nothing.hidden, theirs.hidden_states[-2], atol=BATCHING)
    assert torch.allclose(nothing.pooled, theirs.image_embeds, atol=BATCHING)
    black = encoder.encode([Image.new("RGB", (SIDE, SIDE))])
    assert float((black.hidden - nothing.hidden[:1]).abs().max()) > 0.1


@pytest.mark.parametrize(
    "processor",
    [
        {},
        {"size": SIDE, "crop_size": SIDE},
        {"size": {"shortest_edge": 40}, "crop_size": {"height": SIDE, "width": SIDE}},
        {"size": {"height": SIDE, "width": SIDE}, "do_center_crop": False},
        {"size": 20, "crop_size": SIDE},  # smaller than the crop: black around it
        {"size": SIDE, "crop_size": SIDE, "resample": 2, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]},
        {"size": SIDE, "crop_size": SIDE, "do_normalize": False},
        {"size": SIDE, "crop_size": SIDE, "do_rescale": False, "do_normalize": False},
    ],
)
def test_pictures_are_prepared_as_transformers_does_with_pillow(processor):
    given = CLIPImageProcessorPil(**processor).to_dict() if processor else {}
    side = SIDE if processor else 224
    theirs = CLIPImageProcessorPil(**processor)(PICTURES, return_tensors="pt").pixel_values.float()
    ours = Preprocessing.from_transformers(given, side).pixels(PICTURES)
    scale = max(1.0, float(theirs.abs().max()))
    assert float((ours - theirs).abs().max()) <= ROUNDING * scale
    assert ours.shape == (len(PICTURES), 3, side, side)


def test_older_preprocessor_configs():
    """Plain numbers, as the published encoders of 2023 have them."""
    old = {
        "crop_size": 224,
        "size": 224,
        "do_resize": True,
        "resample": 3,
        "feature_extractor_type": "CLIPFeatureExtractor",
    }
    assert Preprocessing.from_transformers(old, 224) == Preprocessing.square(224)


def test_a_folders_preprocessing_counts(tmp_path):
    other = {"size": SIDE, "crop_size": SIDE, "image_mean": [0.1, 0.2, 0.3]}
    assert load_image_encoder(save(tmp_path / "a", processor=other)).preprocessing.mean == (0.1, 0.2, 0.3)
    assert load_image_encoder(save(tmp_path / "b")).preprocessing == Preprocessing.square(SIDE)


def test_transparency_is_white():
    clear = Image.new("RGBA", (SIDE, SIDE), (255, 0, 0, 0))
    white = Image.new("RGB", (SIDE, SIDE), "white")
    prepare = Preprocessing.square(SIDE)
    assert torch.equal(prepare.pixels([clear]), prepare.pixels([white]))


def test_what_is_no_picture_is_refused(tmp_path):
    encoder = load_image_encoder(save(tmp_path))
    with pytest.raises(InvalidInput, match=r"pictures is none"):
        encoder.encode([])
    with pytest.raises(InvalidInput, match=r"pictures\[1\] is 4000 x 2 pixels"):
        encoder.encode([PICTURES[0], Image.new("RGB", (4000, 2))])
    with pytest.raises(InvalidInput, match=r"pictures\[0\] is 0 x 5 pixels"):
        encoder.encode([Image.new("RGB", (0, 5))])
    stored = io.BytesIO()
    PICTURES[0].save(stored, "png")
    cut = Image.open(io.BytesIO(stored.getvalue()[:300]))
    with pytest.raises(InvalidInput, match=r"pictures\[0\] is not readable"):
        encoder.encode([cut])


def test_arrays_are_no_pictures():
    """Annotations are checked in tests, so the method that pictures come through is asked."""
    from undertow.encoders.image_pixels import _rgb_picture

    with pytest.raises(InvalidInput, match=r"pictures\[3\] is a ndarray, expected a PIL image"):
        _rgb_picture(np.zeros((4, 4, 3)), 3)


def test_the_type_is_the_files_or_the_one_asked_for(tmp_path):
    folder = save(tmp_path)
    save_file(reference().half().state_dict(), folder / "model.fp16.safetensors")
    reference.cache_clear()
    assert load_image_encoder(folder).dtype == torch.float16
    encoder = load_image_encoder(folder, dtype=torch.bfloat16)
    assert encoder.dtype == torch.bfloat16
    seen = encoder.encode(PICTURES[:1])
    assert (seen.pooled.dtype, seen.hidden.dtype) == (torch.float32, torch.float32)
    assert torch.isfinite(seen.hidden).all()


def test_in_a_pipelines_folder(tmp_path):
    save(tmp_path / "image_encoder")
    (tmp_path / "model_index.json").write_text("{}")
    CLIPImageProcessorPil(size=SIDE, crop_size=SIDE, image_mean=[0.0, 0.1, 0.2]).save_pretrained(
        tmp_path / "feature_extractor"
    )
    encoder = load_image_encoder(tmp_path)
    assert encoder.preprocessing.mean == (0.0, 0.1, 0.2)
    assert load_image_encoder(tmp_path / "image_encoder").preprocessing == encoder.preprocessing
    assert load_image_encoder(tmp_path / "image_encoder" / "model.safetensors").config == encoder.config
    (tmp_path / "image_encoder" / "config.json").unlink()
    with pytest.raises(MissingComponent, match="it holds no image_encoder"):
        load_image_encoder(tmp_path)


def test_the_vision_half_of_a_whole_clip(tmp_path):
    """Its projection's width stands beside both halves' configs."""
    vision = reference().config.to_dict()
    config = {"model_type": "clip", "projection_dim": PROJECTED, "vision_config": {**vision, "projection_dim": 512}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    others = {"text_model.embeddings.token_embedding.weight": torch.zeros(4, 4), "logit_scale": torch.tensor(2.0)}
    positions = {"vision_model.embeddings.position_ids": torch.zeros(1, PATCHES)}  # damaged: counted anew
    save_file({**reference().state_dict(), **others, **positions}, tmp_path / "model.safetensors")
    encoder = load_image_encoder(tmp_path)
    assert torch.equal(encoder(torch.zeros(1, 3, SIDE, SIDE)).pooled, reference()(torch.zeros(1, 3, SIDE, SIDE))[0])


@pytest.mark.parametrize("name", PUBLISHED_VISION)
def test_published_networks_are_known_by_their_shapes(name):
    config = PUBLISHED_VISION[name]
    shapes = {
        "vision_model.embeddings.patch_embedding.weight": (config.width, 3, 14, 14),
        "visual_projection.weight": (config.projection, config.width),
        f"vision_model.encoder.layers.{config.layers - 1}.layer_norm1.weight": (config.width,),
    }
    assert published_vision_config(shapes) == config
    assert published_vision_config({**shapes, "visual_projection.weight": (7, config.width)}) is None


def test_files_that_are_no_encoder(tmp_path):
    folder = save(tmp_path / "good")
    tensors = {name: tensor.clone() for name, tensor in reference().state_dict().items()}
    lone = tmp_path / "lone"
    lone.mkdir()
    with pytest.raises(UnknownCheckpoint, match=r"no published CLIP vision network, and no config\.json beside it"):
        load_image_encoder(write(lone / "mine.safetensors", tensors))
    with pytest.raises(UnsupportedModel, match="open_clip's names"):
        load_image_encoder(write(lone / "mine.safetensors", {"visual.conv1.weight": torch.zeros(2)}))
    with pytest.raises(UnknownCheckpoint, match=r"no config\.json"):
        load_image_encoder(lone)
    tensors["visual_projection.weight"] = torch.zeros(5, WIDTH)
    write(folder / "model.safetensors", tensors)
    with pytest.raises(KeyMismatch, match=r"visual_projection\.weight \[5, 32\] instead of \[24, 32\]"):
        load_image_encoder(folder)
    del tensors["visual_projection.weight"]
    write(folder / "model.safetensors", {**tensors, "who": torch.zeros(1)})
    with pytest.raises(KeyMismatch, match=r"1 missing \(visual_projection\.weight\); 1 unexpected \(who\)"):
        load_image_encoder(folder)
    (folder / "config.json").write_text("not json")
    with pytest.raises(CorruptFile):
        load_image_encoder(folder)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"num_attention_heads": 5}, "heads"),
        ({"model_type": "siglip_vision_model"}, "model_type"),
        ({"num_channels": 1}, "num_channels"),
        ({"patch_size": 99}, "patch_size"),
    ],
)
def test_configs_of_other_networks(changes, field):
    with pytest.raises(ConfigError) as error:
        vision_config_from_transformers({**reference().config.to_dict(), **changes})
    assert error.value.field == field


@pytest.mark.parametrize(
    "config",
    [{"size": 32, "crop_size": 40}, {"size": "big"}, {"image_mean": [0.5]}, {"resample": 9}, {"do_center_crop": False}],
)
def test_preprocessings_that_cannot_be(config):
    with pytest.raises(ConfigError):
        Preprocessing.from_transformers({"size": SIDE, "crop_size": SIDE, **config}, SIDE)


@pytest.mark.parametrize("variant", ["base", "plus", "full"])
def test_adapters_take_the_encoder_that_they_were_trained_with(variant, tmp_path):
    """And read no picture as their authors do: zeros in place of the pooled vector, else a tensor of zeros encoded."""
    unet, _ = pair("M15")
    encoder = load_image_encoder(save(tmp_path / "image_encoder"))
    right = PROJECTED if variant == "base" else WIDTH

    def adapter(feature_dim: int):
        tensors = flat(authors(unet.config, variant, feature_dim=feature_dim))
        return read_image_prompt(write(tmp_path / "ip.safetensors", tensors), unet)

    prompt = adapter(right)
    prompt.require_encoder(encoder)
    assert prompt.tokens(encoder.encode(PICTURES)).shape[0] == len(PICTURES)
    nothing = prompt.nothing(encoder, 3)
    if variant == "base":
        assert torch.equal(nothing.pooled, torch.zeros(3, PROJECTED))
    else:
        assert torch.equal(nothing.hidden, encoder.nothing(3).hidden)
    assert prompt.tokens(nothing).shape[0] == 3
    part = "pooled vectors" if variant == "base" else "hidden states"
    with pytest.raises(
        AdapterMismatch, match=f"it reads {part} 1280 wide, and the encoder's are {right} wide; give Open"
    ):
        adapter(1280).require_encoder(encoder)


def test_an_encoder_from_tensors_in_memory():
    config = vision_config_from_transformers(reference().config.to_dict())
    assert config == ClipVisionConfig(
        width=WIDTH,
        layers=LAYERS,
        heads=4,
        intermediate=2 * WIDTH,
        projection=PROJECTED,
        activation="gelu",
        image_size=SIDE,
        patch_size=PATCH,
        norm_eps=1e-4,
    )
    encoder = ImageEncoder.from_tensors(reference().state_dict(), config, dtype=torch.float64)
    assert encoder.dtype == torch.float64
    assert encoder.encode(PICTURES).pooled.dtype == torch.float32
