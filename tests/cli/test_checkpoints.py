"""The verbs convert and inspect, on real files, as a person uses them."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints.crafted import clip_shapes, ldm_shapes, openclip_shapes, sparse_file
from tests.checkpoints.pipelines import save_pipeline
from undertow.checkpoints.files import weights
from undertow.checkpoints.report import report_on
from undertow.cli.app import main
from undertow.state_dicts import Differences
from undertow.unet.config import UNetConfig


@pytest.fixture
def wide(monkeypatch):
    """A terminal on which nothing wraps."""
    monkeypatch.setenv("COLUMNS", "200")


def test_convert_and_inspect(tmp_path, capsys, wide):
    folder, file = (
        save_pipeline(tmp_path / "in", "sdxl", prediction_type="v_prediction"),
        tmp_path / "model.safetensors",
    )
    assert main(["convert", str(folder), str(file), "--to", "ldm", "--dtype", "f16"]) == 0
    assert {tensor.dtype for tensor in load_file(file).values() if tensor.numel()} == {torch.float16}
    assert main(["inspect", str(file), "--validate-weights"]) == 0
    shown = capsys.readouterr().out
    for expected in ("built like sdxl", "v (certain: the marker tensor 'v_pred')", "all float16", "U-Net", "VAE",
                     "text encoder (CLIP-L)", "text encoder (OpenCLIP-bigG)", "10,065,540", "looked at"):  # fmt: skip
        assert expected in shown, expected


def test_inspect_a_full_size_file(tmp_path, capsys, wide):
    """Family, evidence, types, counts, missing and unexpected names, and the memory that it takes."""
    shapes = {
        **ldm_shapes(UNetConfig.sdxl()),
        **clip_shapes("conditioner.embedders.0.transformer.", 768),
        **openclip_shapes("conditioner.embedders.1.model.", 1280),
        "betas": (1000,),
        "model.diffusion_model.input_blocks.1.5.weight": (3,),
        "who.knows": (2,),
    }
    del shapes["model.diffusion_model.out.2.bias"]
    file = sparse_file(tmp_path / "model.safetensors", shapes, metadata={"modelspec.title": "[red]X\x1b[2J"})
    assert main(["inspect", str(file)]) == 0
    shown = capsys.readouterr().out
    for expected in ("Stable Diffusion XL (sdxl, base)", "text 2048 wide", "epsilon (assumed:", "all float16",
                     "1 missing, 1 unexpected", "U-Net: missing: 1", "conv_out.bias", "input_blocks.1.5.weight",
                     "who.knows", "2,567,463,680", "modelspec.title: [red]X", "left aside"):  # fmt: skip
        assert expected in shown, expected
    assert "\x1b[2J" not in shown, "text from a file must not command the terminal"


def test_a_file_larger_than_memory_is_inspected_by_its_header(tmp_path, capsys, wide):
    """Seven tebibytes that take no room on the disk, and that no machine maps: a model, and a LoRA with its alphas."""
    size, huge = 7 * 2**40, {"huge": (7 * 2**39,)}
    model = sparse_file(tmp_path / "model.safetensors", {**ldm_shapes(UNetConfig.sd15()), **huge})
    stems = [f"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_{each}" for each in "qk"]
    layers = {
        f"{stem}.{leaf}": shape
        for stem in stems
        for leaf, shape in (("lora_down.weight", (4, 1280)), ("lora_up.weight", (1280, 4)), ("alpha", ()))
    }
    lora = sparse_file(tmp_path / "lora.safetensors", {**layers, **huge})
    for file, expected in ((model, "Stable Diffusion 1"), (lora, "an adapter of 2 layers")):
        assert file.stat().st_size > size
        assert main(["inspect", str(file)]) == 0
        shown = capsys.readouterr().out
        assert expected in shown
        assert "huge" in shown


def test_a_file_that_the_system_does_not_map_is_no_bug(tmp_path, capsys, monkeypatch):
    def too_large(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("unable to mmap 33285996544 bytes from file <x>: Cannot allocate memory (12)")  # as torch

    file = sparse_file(tmp_path / "model.safetensors", ldm_shapes(UNetConfig.sd15()))
    monkeypatch.setattr(weights, "safe_open", too_large)
    assert main(["inspect", str(file), "--validate-weights"]) == 2
    assert "1.6 GiB, which cannot be mapped into this machine's memory; close" in capsys.readouterr().err


def test_the_report_is_a_record(tmp_path):
    file = sparse_file(tmp_path / "model.safetensors", ldm_shapes(UNetConfig.sd15()))
    report = report_on(file)
    assert report.parameters == 859_520_964
    assert report.dtypes() == {torch.float16: 859_520_964}
    assert report.run_bytes()[torch.float32] == 4 * 859_520_964
    assert [part.differences for part in report.components] == [Differences()]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"<!DOCTYPE html>", "web page"), (b"PK\x03\x04", "pickle"), (b"GGUF", "GGUF")],
)
def test_what_cannot_be_read_is_one_sentence(content, message, tmp_path, capsys):
    (tmp_path / "model.safetensors").write_bytes(content)
    assert main(["inspect", str(tmp_path / "model.safetensors")]) == 2
    assert message in capsys.readouterr().err


def test_a_pickle_is_read_when_it_is_allowed(tmp_path, capsys, wide):
    torch.save({"first_stage_model.encoder.conv_in.weight": torch.ones(2)}, tmp_path / "model.ckpt")
    assert main(["inspect", str(tmp_path / "model.ckpt")]) == 2
    assert "--allow-pickle" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "model.ckpt"), "--allow-pickle"]) == 2
    assert "none of its 1 tensors is known" in capsys.readouterr().err


def test_damage_is_listed(tmp_path, capsys, wide):
    folder = save_pipeline(tmp_path / "in", "sd1")
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["decoder.conv_in.weight"][0, 0] = float("nan")
    save_file(tensors, file)
    assert main(["inspect", str(folder), "--validate-weights"]) == 0
    assert "decoder.conv_in.weight: NaN: 9/2304" in capsys.readouterr().out
