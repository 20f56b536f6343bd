"""Where checkpoints come from: variants and shards of folders, paths that escape, the Hub's cache and its absence."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import undertow
from tests.checkpoints.crafted import assert_same_weights, ldm_tensors
from tests.checkpoints.pipelines import MINIS, save_pipeline
from tests.golden.minis import M15, MPIX, build, build_twin
from undertow.checkpoints.files.hub import fetch, files_to_fetch
from undertow.checkpoints.files.model_folder import folder_weights, variant_order
from undertow.checkpoints.files.place import is_hub_id
from undertow.checkpoints.identify.checkpoint import OpenOptions
from undertow.checkpoints.identify.outline import outline
from undertow.checkpoints.read.loading import LoadOptions
from undertow.checkpoints.read.model_loading import load_model
from undertow.checkpoints.read.unet_loading import load_unet_from
from undertow.checkpoints.write.unet_folder import save_unet
from undertow.embedded import embedded_models
from undertow.errors import (
    ConfigError,
    CorruptFile,
    MissingComponent,
    UnknownCheckpoint,
    UnsafeFile,
    UnsupportedModel,
)

WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folder of one U-Net, as diffusers saves it."""
    build_twin(M15, build(M15)).save_pretrained(tmp_path / "unet")
    return tmp_path / "unet"


def variant(folder: Path, name: str, change: float) -> None:
    tensors = load_file(folder / f"{WEIGHTS}.safetensors")
    save_file({key: value + change for key, value in tensors.items()}, folder / f"{WEIGHTS}.{name}.safetensors")


def first_bias(folder: Path, dtype: torch.dtype | None = None, **opening: object) -> float:
    plain = dtype == torch.float32
    unet = load_unet_from(folder, LoadOptions(dtype=dtype), OpenOptions(prefer_plain=plain, **opening))
    return (unet.conv_in.bias[0] - build(M15).conv_in.bias[0]).item()


def test_variants_are_taken_in_order(folder):
    variant(folder, "fp16", 1.0)
    variant(folder, "non_ema", 2.0)
    variant(folder, "ema", 3.0)
    rounding = 1e-5
    assert first_bias(folder) == pytest.approx(1.0, abs=rounding)
    assert first_bias(folder, dtype=torch.float32) == pytest.approx(0.0, abs=rounding)
    assert first_bias(folder, variant="non_ema") == pytest.approx(2.0, abs=rounding)
    assert first_bias(folder, variant="nowhere") == pytest.approx(1.0, abs=rounding)
    assert first_bias(folder, ema=True) == pytest.approx(3.0, abs=rounding)
    (folder / f"{WEIGHTS}.fp16.safetensors").unlink()
    (folder / f"{WEIGHTS}.safetensors").unlink()
    assert first_bias(folder) == pytest.approx(2.0, abs=rounding)
    assert variant_order("x") == ("x", "fp16", "", "non_ema")


def test_averages_in_a_folder_of_their_own_or_missed_by_name(folder):
    with pytest.raises(MissingComponent, match="averaged"):
        load_unet_from(folder.parent, opening=OpenOptions(ema=True))
    save_unet(build(M15, seed=7), folder.parent / "unet_ema")
    assert_same_weights(load_unet_from(folder.parent, opening=OpenOptions(ema=True)), build(M15, seed=7))


@pytest.fixture
def sharded(tmp_path) -> Path:
    """Several shards with an index, as diffusers saves them."""
    build_twin(M15, build(M15)).save_pretrained(tmp_path / "unet", max_shard_size="10MB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 2
    return tmp_path / "unet"


def index_of(folder: Path) -> tuple[Path, dict]:
    path = folder / f"{WEIGHTS}.safetensors.index.json"
    return path, json.loads(path.read_text())


def test_shards_load_strictly(sharded):
    assert_same_weights(undertow.load_unet(sharded), build(M15))
    shard = sorted(sharded.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(CorruptFile, match=r"1 of \d shards are missing"):
        undertow.load_unet(sharded)
    shard.write_bytes(content[:-8])
    with pytest.raises(CorruptFile, match="not a whole"):
        undertow.load_unet(sharded)


def test_an_index_that_names_more_than_there_is(sharded):
    path, index = index_of(sharded)
    index["weight_map"]["phantom.weight"] = next(iter(index["weight_map"].values()))
    path.write_text(json.dumps(index))
    with pytest.raises(CorruptFile, match="phantom"):
        undertow.load_unet(sharded)


@pytest.mark.parametrize(
    "escape", ["../secret.safetensors", "/etc/passwd", "a/../../x", "sub/x.safetensors", "..\\x", "C:x"]
)
def test_an_index_may_not_leave_its_folder(sharded, escape):
    save_file({"secret": torch.ones(2)}, sharded.parent / "secret.safetensors")
    path, index = index_of(sharded)
    index["weight_map"]["conv_in.bias"] = escape
    path.write_text(json.dumps(index))
    with pytest.raises(CorruptFile, match="outside the folder"):
        undertow.load_unet(sharded)


def test_a_link_may_not_leave_its_folder(folder):
    file = folder / f"{WEIGHTS}.safetensors"
    file.rename(folder.parent / "elsewhere.safetensors")
    file.symlink_to(folder.parent / "elsewhere.safetensors")
    with pytest.raises(CorruptFile, match="link to a place outside"):
        undertow.load_unet(folder)


def test_folders_of_pickles_and_of_nothing(folder):
    file = folder / f"{WEIGHTS}.safetensors"
    file.rename(folder / f"{WEIGHTS}.bin")
    with pytest.raises(UnsafeFile, match="pickles"):
        undertow.load_unet(folder)
    (folder / f"{WEIGHTS}.bin").unlink()
    with pytest.raises(UnknownCheckpoint, match="no weights"):
        folder_weights(folder, variant_order(None))
    (folder / "config.json").unlink()
    with pytest.raises(UnknownCheckpoint, match=r"config\.json"):
        undertow.load_unet(folder)


@pytest.mark.parametrize(
    ("index", "name"),
    [
        (
            {"_class_name": "StableDiffusion3Pipeline", "transformer": ["diffusers", "SD3Transformer2DModel"]},
            "Diffusion 3",
        ),
        ({"_class_name": "FluxPipeline"}, "FLUX"),
        ({"_class_name": "StableVideoDiffusionPipeline"}, "Video"),
        ({"_class_name": "StableDiffusionUpscalePipeline", "unet": ["diffusers", "UNet2DConditionModel"]}, "upscaler"),
        ({"_class_name": "StableDiffusionDepth2ImgPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}, "depth"),
        ({"_class_name": "PixArtAlphaPipeline", "transformer": ["diffusers", "X"]}, "PixArtAlphaPipeline"),
        ({"_class_name": "Odd", "unet": ["diffusers", "UNet3DConditionModel"]}, "UNet3DConditionModel"),
    ],
)
def test_other_pipelines_are_refused_by_name(index, name, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UnsupportedModel, match=name):
        load_model(tmp_path)


def test_a_pixel_model_s_folder_is_a_model_without_the_rest(tmp_path):
    save_unet(build(MPIX), tmp_path)
    model = load_model(tmp_path)
    assert model.family == "pixels"
    assert model.latent_space is None
    assert_same_weights(model.require_unet(), build(MPIX))


def test_missing_parts_are_named_and_can_come_from_elsewhere(tmp_path):
    whole = save_pipeline(tmp_path / "whole", "sd1")
    save_file(ldm_tensors(build(M15)), tmp_path / "unet_only.safetensors")
    bare = load_model(tmp_path / "unet_only.safetensors", config=M15.config)
    with pytest.raises(MissingComponent, match="no VAE"):
        bare.require_vae()
    with pytest.raises(MissingComponent, match=r"no text encoder \(CLIP-L\)"):
        bare.require_text()
    full = load_model(tmp_path / "unet_only.safetensors", config=M15.config, vae=whole, text=whole)
    assert_same_weights(full.require_vae(), load_model(whole).require_vae())
    assert full.require_text().width == 24


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_other_parts_come_from_folders_without_a_unet(family, tmp_path):
    """Of a pipeline of which only the encoders and the VAE are there, of a pipeline that undertow does not run, whose
    T5 is passed over, and of the networks' own folders."""
    whole = load_model(save_pipeline(tmp_path / "whole", family))
    parts = tmp_path / "parts"
    shutil.copytree(tmp_path / "whole", parts)
    shutil.rmtree(parts / "unet")
    shutil.rmtree(parts / "scheduler")
    (parts / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    (parts / "text_encoder_3").mkdir()
    (parts / "text_encoder_3" / "config.json").write_text('{"architectures": ["T5EncoderModel"]}')
    (tmp_path / "main").mkdir()
    shutil.copytree(tmp_path / "whole" / "unet", tmp_path / "main" / "unet")
    sources = [(parts, parts)] + ([(parts / "vae", parts / "text_encoder")] if family == "sd1" else [])
    for vae, text in sources:
        found = load_model(tmp_path / "main", vae=vae, text=text)
        assert_same_weights(found.require_vae(), whole.require_vae())
        for encoder, expected in zip(found.require_text().encoders, whole.require_text().encoders, strict=True):
            assert encoder.kind == expected.kind
            assert_same_weights(encoder, expected)
    for wanted in ({"vae": parts / "text_encoder"}, {"text": parts / "vae"}):
        with pytest.raises(MissingComponent, match="give a pipeline folder, or that of a"):
            load_model(tmp_path / "main", **wanted)


def test_text_encoders_of_another_model_are_refused(tmp_path):
    whole = save_pipeline(tmp_path / "whole", "sd1")
    config = json.loads((whole / "unet/config.json").read_text())
    other = build_twin(M15)
    other = type(other).from_config({**config, "cross_attention_dim": 32})
    other.save_pretrained(whole / "unet")
    with pytest.raises(ConfigError, match="24 wide"):
        load_model(whole)


def test_types_of_unet_and_vae_are_their_own(tmp_path):
    model = load_model(save_pipeline(tmp_path, "sdxl"), dtype=torch.float16, vae_dtype=torch.float32)
    assert model.require_unet().dtype == torch.float16
    assert model.require_vae().dtype == torch.float32
    assert {encoder.dtype for encoder in model.require_text().encoders} == {torch.float16}


def test_mapped_weights_equal_copied_ones(folder):
    assert_same_weights(load_unet_from(folder, LoadOptions(mmap=True)), build(M15))


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("owner/name", True),
        ("owner/name@main", True),
        ("owner/na-me.v1/sub/model.safetensors@refs/pr/1", True),
        ("owner", False),
        ("../x", False),
        ("owner/name/", False),
        ("owner/name/model.ckpt", False),
        ("folder/missing.safetensors", False),
        ("folder/missing.ckpt@main", False),
        ("owner/safetensors", True),
        ("https://host/owner/name", False),
    ],
)
def test_hub_ids(text, valid):
    assert is_hub_id(text) == valid


def test_only_the_files_that_are_needed_are_downloaded():
    names = [
        "README.md", "model_index.json", "v1-5-pruned.safetensors", "v1-5.ckpt", "unet/config.json",
        "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.fp16-00001-of-00002.safetensors", "text_encoder/model.fp16-00002-of-00002.safetensors",
        "text_encoder/model.safetensors.index.fp16.json", "tokenizer/merges.txt",
    ]  # fmt: skip
    assert sorted(files_to_fetch(names, None)) == [
        "model_index.json",
        "text_encoder/model.fp16-00001-of-00002.safetensors",
        "text_encoder/model.fp16-00002-of-00002.safetensors",
        "text_encoder/model.safetensors.index.fp16.json",
        "tokenizer/merges.txt",
        "unet/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert "unet/diffusion_pytorch_model.safetensors" in files_to_fetch(names, "")
    bare = ["config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "x.safetensors"]
    assert files_to_fetch(bare, None) == bare[:2]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the Hub, and no network."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def fill(cache: Path, content: Path) -> None:
    """A finished download, as the Hub's client lays it out: links from a snapshot into blobs."""
    root, commit = cache / "models--owner--name", "0" * 40
    (root / "blobs").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    for number, file in enumerate(path for path in sorted(content.rglob("*")) if path.is_file()):
        place = root / "snapshots" / commit / file.relative_to(content)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.rename(root / "blobs" / str(number))
        place.symlink_to(os.path.relpath(root / "blobs" / str(number), place.parent))


def test_a_model_in_the_local_cache_needs_no_network(cache, tmp_path):
    pipeline = save_pipeline(tmp_path / "pipeline", "sd1")
    save_file(ldm_tensors(build(M15)), pipeline / "single.safetensors")
    fill(cache, pipeline)
    assert load_model("owner/name").family == "sd1"
    assert_same_weights(undertow.load_unet("owner/name"), build(MINIS["sd1"]))
    single = load_unet_from("owner/name/single.safetensors", opening=OpenOptions(config=M15.config))
    assert_same_weights(single, build(M15))


def test_a_half_finished_download_is_not_taken_for_a_model(cache, tmp_path):
    pipeline = save_pipeline(tmp_path / "pipeline", "sd1")
    next((pipeline / "vae").glob("*.safetensors")).unlink()
    fill(cache, pipeline)
    with pytest.raises(UnknownCheckpoint, match="not whole in the local cache"):
        fetch("owner/name")


@pytest.mark.parametrize("source", ["owner/name", "owner/name/model.safetensors", "owner/name@main"])
def test_without_network_the_error_says_what_to_do(cache, source):
    with pytest.raises(UnknownCheckpoint, match=r"not whole in the local cache.*give the path"):
        undertow.load_unet(source)


def test_paths_are_never_asked_of_the_hub(cache):
    for source in ("./owner/name", "/nowhere/model.safetensors", "a/b/c/d", "nothing"):
        with pytest.raises(UnknownCheckpoint, match="no such file or folder") as caught:
            undertow.load_unet(source)
        assert "Hub did not answer" not in str(caught.value)


@pytest.mark.parametrize("name", embedded_models())
def test_a_name_that_only_higher_doors_take_is_told_where_it_goes(name):
    """And is not asked whether it was meant."""
    with pytest.raises(UnknownCheckpoint, match=r"undertow.load and undertow.load_unet take it by its name") as refusal:
        load_model(name)
    assert f"embedded_models()[{name!r}]" in str(refusal.value)
    assert "did you mean" not in str(refusal.value)
    with pytest.raises(UnknownCheckpoint, match=f"did you mean {name!r}"):
        load_model(f"./{name}")


def test_the_folder_of_an_autoencoder_is_a_model_with_nothing_else(tmp_path):
    whole = save_pipeline(tmp_path / "pipeline", "sd1")
    found, expected = load_model(whole / "vae"), load_model(whole)
    assert (found.unet, found.text) == (None, None)
    assert_same_weights(found.require_vae(), expected.require_vae())
    assert (found.require_vae().config, found.latent_space) == (expected.require_vae().config, expected.latent_space)
    with pytest.raises(MissingComponent, match="it holds no U-Net"):
        undertow.load(whole / "vae").generate("owl")
    with pytest.raises(MissingComponent, match="it holds no U-Net"):
        undertow.load_unet(whole / "vae")
    with pytest.raises(UnknownCheckpoint, match=r"an autoencoder without a U-Net, .*; in Python, this as `vae=`"):
        outline(str(whole / "vae"))


def test_a_file_that_only_its_folder_describes_says_so(tmp_path):
    file = next((embedded_models()["emoji"] / "vae").glob("*.safetensors"))
    with pytest.raises(UnknownCheckpoint, match=r"give its folder, whose config.json describes it"):
        load_model(file)
    shutil.copy(file, tmp_path / "alone.safetensors")
    with pytest.raises(UnknownCheckpoint, match=r"4 latent channels, and others by their config.json"):
        load_model(tmp_path / "alone.safetensors")


@pytest.mark.parametrize(
    ("part", "error", "words"),
    [
        ("text_encoder", UnknownCheckpoint, "a text encoder without a U-Net, .*; in Python, this as `text=`"),
        ("adapters/edges", UnsupportedModel, "a ControlNet, .*; load it beside a base model as an adapter"),
    ],
)
def test_the_folder_of_another_network_says_where_it_is_taken(part, error, words):
    folder = embedded_models()["emoji"] / part
    for door in (load_model, undertow.load, undertow.load_unet, lambda place: outline(str(place))):
        with pytest.raises(error, match=words):
            door(folder)
