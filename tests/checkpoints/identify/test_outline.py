"""What a model is made of, by configs and headers alone: equal to what opening it finds, and fetched by ranges."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.checkpoints.crafted import clip_shapes, ldm_shapes, openclip_shapes, sparse_file, unet_shapes, vae_shapes
from tests.checkpoints.hub_server import served
from tests.services import pipeline_folder
from undertow.checkpoints.identify.opening import open_checkpoint
from undertow.checkpoints.identify.outline import outline
from undertow.checkpoints.read.model_loading import load_model
from undertow.checkpoints.write.convert import convert
from undertow.embedded import embedded_models
from undertow.encoders.clip_config import PUBLISHED, config_from_transformers
from undertow.engine.planning import quantized_weights
from undertow.errors import CorruptFile, UnknownCheckpoint, UnsafeFile, UnsupportedModel
from undertow.quantization import as_quantization
from undertow.unet.config import UNetConfig
from undertow.vae.autoencoder import AutoencoderKL
from undertow.vae.config import VAEConfig

FAMILIES = ("sd1", "sd2", "sdxl")

XL_TEXT = {
    **clip_shapes("conditioner.embedders.0.transformer.", 768, layers=12),
    **openclip_shapes("conditioner.embedders.1.model.", 1280, layers=32),
}
SINGLE = {
    "sd1": {**ldm_shapes(UNetConfig.sd15()), **clip_shapes("cond_stage_model.transformer.", 768, layers=12)},
    "sdxl": {**ldm_shapes(UNetConfig.sdxl()), **XL_TEXT},
    "sdxl_refiner": {
        **ldm_shapes(UNetConfig.sdxl_refiner()),
        **openclip_shapes("conditioner.embedders.0.model.", 1280, layers=32),
    },
}
"""Names and shapes of the published single files."""


@cache
def whole_vae_shapes() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {
            f"vae.{name}": tuple(tensor.shape) for name, tensor in AutoencoderKL(VAEConfig.sd()).state_dict().items()
        }


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_s_outline_is_what_opening_it_finds(family):
    folder = pipeline_folder(family)
    found = outline(str(folder))
    with open_checkpoint(folder) as checkpoint:
        assert (found.family, found.unet) == (checkpoint.identification.family, checkpoint.identification.config)
        assert found.vae == checkpoint.vae_config
        text = {
            kind: config_from_transformers(json.loads((source.folder / "config.json").read_text()), kind)
            for kind, source in checkpoint.parts.items()
            if kind in PUBLISHED
        }
    assert dict(found.text) == text
    assert found.stored == "F32"


@pytest.mark.parametrize("written", ["folder", "file"])
@pytest.mark.parametrize("rules", [{"*": "int8-weights"}, {"unet.*.attn*": "int8-weights", "clip_l.*": "int8-weights"}])
def test_what_will_be_quantized_is_known_before(rules, written, tmp_path):
    source, rules = pipeline_folder("sd1"), as_quantization(rules)
    if written == "file":
        source = convert(source, tmp_path / "model.safetensors", "ldm")
    assert outline(str(source)).quantized == ()
    found = outline(str(source), rules).quantized
    text = pipeline_folder("sd1")  # with its own tokenizer, which single files have not
    loaded = quantized_weights(load_model(source, text=text, quantization=rules))
    assert {one.component: one for one in found if one.numbers} == {one.component: one for one in loaded if one.numbers}
    assert sum(one.numbers for one in found) > 10_000


def test_what_was_quantized_is_known_unless_it_is_read_as_plain(tmp_path):
    folder = tmp_path / "quantized"
    convert(pipeline_folder("sdxl"), folder, "diffusers", quantization=as_quantization("int8-weights"))
    stored = outline(str(folder))
    assert {one.component for one in stored.quantized if one.numbers} == {"unet", "vae", "clip_l", "openclip_g"}
    assert outline(str(folder), None).quantized == ()


@pytest.mark.parametrize("family", SINGLE)
def test_a_file_s_outline_is_what_opening_it_finds(family, tmp_path):
    file = sparse_file(tmp_path / "model.safetensors", {**SINGLE[family], **whole_vae_shapes()})
    found = outline(str(file))
    with open_checkpoint(file) as checkpoint:
        assert (found.family, found.unet) == (family, checkpoint.identification.config)
        assert found.vae == checkpoint.vae_config
    kinds = {"sd1": ["clip_l"], "sdxl": ["clip_l", "openclip_g"], "sdxl_refiner": ["openclip_g"]}
    assert [*found.text] == kinds[family]
    assert all(
        (found.text[kind].width, found.text[kind].layers) == (PUBLISHED[kind].width, PUBLISHED[kind].layers)
        for kind in found.text
    )
    assert (found.name, found.stored) == ("model", "F16")


def test_an_embedded_model_without_text_has_none():
    found = outline(str(embedded_models()["digits-flow"]))
    assert (found.family, found.vae, dict(found.text)) == ("pixels", None, {})


def test_a_folder_without_weights_has_an_outline(tmp_path):
    """What was asked for before the download: the configs suffice."""
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text((pipeline_folder("sd1") / "unet" / "config.json").read_text())
    assert outline(str(tmp_path)).stored is None


def test_what_is_no_model_is_said(tmp_path):
    lora = sparse_file(tmp_path / "lora.safetensors", {"lora_unet_x.lora_down.weight": (4, 4)})
    vae = sparse_file(tmp_path / "vae.safetensors", vae_shapes("first_stage_model."))
    text, pickle = tmp_path / "text.txt", tmp_path / "model.ckpt"
    text.write_text("nothing but words, and more of them than a header is long")
    pickle.write_bytes(b"\x80\x02}q\x00.")
    short = tmp_path / "short.safetensors"
    short.write_bytes(lora.read_bytes()[:-3])
    for source, kind, words in (
        (lora, UnsupportedModel, "a LoRA, not a model of its own"),
        (vae, UnknownCheckpoint, "parts of a pipeline without a U-Net"),
        (text, CorruptFile, "this is text, not a model"),
        (pickle, UnsafeFile, "this is a pickle"),
        (short, CorruptFile, "not a whole safetensors file"),
        (tmp_path, UnknownCheckpoint, "no config.json"),
        ("./nowhere", UnknownCheckpoint, "no such file or folder"),
    ):
        with pytest.raises(kind, match=words):
            outline(str(source))


def test_a_model_on_the_hub_is_outlined_from_some_kilobytes(tmp_path, monkeypatch):
    """Of a repository with a U-Net of 1.7 GB and of a single file of as much, only configs and headers are sent."""
    repository = tmp_path / "hub" / "owner" / "name"
    (repository / "unet").mkdir(parents=True)
    for place in ("model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json"):
        (repository / place).parent.mkdir(exist_ok=True)
        (repository / place).write_bytes((pipeline_folder("sd1") / place).read_bytes())
    weights = "unet/diffusion_pytorch_model.fp16.safetensors"
    sparse_file(repository / weights, unet_shapes(UNetConfig.sd15()))
    sparse_file(repository / "single.safetensors", {**SINGLE["sd1"], **whole_vae_shapes()})
    with served(tmp_path / "hub", tmp_path / "cache", monkeypatch) as hub:
        folder = outline("owner/name")
        assert folder.unet == outline(str(repository)).unet
        assert (folder.name, folder.stored, list(folder.text)) == ("name", "F16", ["clip_l"])
        single = outline("owner/name/single.safetensors@main")
        assert (single.family, single.unet) == ("sd1", UNetConfig.sd15())
        assert hub.served[weights] < 200_000 < (repository / weights).stat().st_size // 1000
        assert hub.served["single.safetensors"] < 400_000
        with pytest.raises(UnknownCheckpoint, match="no such model on the Hub"):
            outline("owner/missing")
        with pytest.raises(UnknownCheckpoint, match="repository on the Hub has no such file"):
            outline("owner/name/missing.safetensors")


def test_outlines_need_no_torch(tmp_path):
    file = sparse_file(tmp_path / "model.safetensors", SINGLE["sd1"])
    code = (
        "import sys; from undertow.checkpoints.identify.outline import outline\n"
        "for source in sys.argv[1:]: outline(source)\n"
        "sys.exit('torch' in sys.modules or 'pydantic' in sys.modules or 'huggingface_hub' in sys.modules)"
    )
    sources: list[str | Path] = [file, embedded_models()["emoji"]]
    subprocess.run([sys.executable, "-c", code, *map(str, sources)], check=True)
