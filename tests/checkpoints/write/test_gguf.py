"""GGUF files that are written: as the package `gguf` reads them, by the names of stable-diffusion.cpp, and back into
the same networks."""

import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file, save_file

import undertow
from tests.checkpoints.pipelines import save_pipeline
from tests.few import few
from tests.golden.minis import MPIX, build
from undertow.checkpoints.files.gguf_types import QUANTIZED, is_quantized
from undertow.checkpoints.identify.identification import identify
from undertow.checkpoints.read.model_loading import load_model
from undertow.checkpoints.write.convert import convert
from undertow.checkpoints.write.unet_folder import save_unet
from undertow.cli.app import main
from undertow.diffusion.schedules import NoiseSchedule
from undertow.embedded import embedded_models
from undertow.errors import ConfigError, DamagedWeights, InvalidInput, MissingDependency

LINEAR = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_q.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny pipeline of SD2, whose text encoder has OpenCLIP's names."""
    return save_pipeline(tmp_path_factory.mktemp("gguf") / "folder", "sd2", prediction_type="v_prediction")


@pytest.fixture(scope="module")
def plain(folder) -> dict[str, torch.Tensor]:
    """The same by LDM's names."""
    return load_file(convert(folder, folder.parent / "model.safetensors", "ldm"))


def tensors_of(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def numbers_of(tensor: gguf.ReaderTensor) -> torch.Tensor:
    """As the package dequantizes them, in the shape that the header says."""
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return torch.from_numpy(np.array(values)).reshape([int(size) for size in tensor.shape[::-1]])


@pytest.mark.parametrize("name", few(QUANTIZED, 1))
def test_the_package_reads_what_its_quantizer_made_of_the_weights(name, folder, plain, tmp_path):
    found = tensors_of(convert(folder, tmp_path / "model.gguf", "gguf", gguf_type=name))
    assert found.keys() == plain.keys(), "the names of a single file, which stable-diffusion.cpp keeps too"
    kinds = {tensor.tensor_type for tensor in found.values()}
    assert kinds == {Kind[name.upper()], Kind.F32}
    for key, tensor in found.items():
        whole = plain[key] if plain[key].numel() else torch.ones(1)
        kind = Kind[name.upper()] if is_quantized(key, tuple(whole.shape), 32) else Kind.F32
        assert tensor.tensor_type == kind, key
        expected = gguf.quants.dequantize(gguf.quants.quantize(whole.float().numpy(), kind), kind)
        np.testing.assert_array_equal(numbers_of(tensor).numpy(), expected, err_msg=key)


@pytest.mark.parametrize("name", few(QUANTIZED, 1))
def test_it_is_read_back_as_the_dequantized_weights(name, folder, tmp_path):
    path = convert(folder, tmp_path / "model.gguf", "gguf", gguf_type=name)
    found, model = tensors_of(path), load_model(path, dtype=torch.float32)
    dequantized = {key: numbers_of(tensor) for key, tensor in found.items()}
    dequantized["v_pred"] = torch.zeros(0)
    field = gguf.GGUFReader(path).fields["undertow.unet_config"]
    described = {key: str(one.contents()) for key, one in gguf.GGUFReader(path).fields.items() if "." in key}
    assert field.contents()
    save_file(dequantized, tmp_path / "plain.safetensors", metadata=described)
    expected = load_model(tmp_path / "plain.safetensors", dtype=torch.float32)
    networks = ((model.require_unet(), expected.require_unet()), (model.require_vae(), expected.require_vae()))
    texts = zip(model.require_text().encoders, expected.require_text().encoders, strict=True)
    for ours, theirs in (*networks, *texts):
        for (key, one), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert torch.equal(one, other), key
    assert not torch.equal(
        model.require_unet().state_dict()[NAME], load_model(folder).require_unet().state_dict()[NAME]
    )


NAME = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q.weight"


def test_another_noise_schedule_is_kept(tmp_path):
    folder = save_pipeline(tmp_path / "in", "sd1", beta_end=0.02)
    path = convert(folder, tmp_path / "model.gguf", "gguf", gguf_type="q8_0")
    assert load_model(path).schedule == NoiseSchedule.scaled_linear(beta_end=0.02)


def test_what_stable_diffusion_cpp_keeps_is_kept():
    """The rule of its `tensor_should_be_converted`, and vectors, which it computes in float32 anyway."""
    for name, shape, expected in (
        (LINEAR, (64, 64), True),
        (LINEAR, (64, 48), False),
        ("model.diffusion_model.time_embed.0.weight", (256, 64), False),
        ("model.diffusion_model.label_emb.0.0.weight", (256, 64), False),
        ("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight", (100, 64), False),
        ("model.diffusion_model.input_blocks.1.0.emb_layers.1.weight", (64, 256), True),
        ("model.diffusion_model.input_blocks.1.0.in_layers.2.weight", (64, 64, 3, 3), False),
        ("model.diffusion_model.input_blocks.1.1.norm.weight", (64,), False),
    ):
        assert is_quantized(name, shape, 32) is expected, name


@pytest.mark.slow
def test_without_a_type_every_number_is_kept(folder, plain, tmp_path):
    for dtype in (None, torch.float16, torch.bfloat16):
        path = convert(folder, tmp_path / f"{dtype}.gguf", "gguf", dtype=dtype)
        kind = {None: Kind.F32, torch.float16: Kind.F16, torch.bfloat16: Kind.BF16}[dtype]
        for key, tensor in tensors_of(path).items():
            if plain[key].numel():
                assert tensor.tensor_type == kind
                expected = plain[key] if dtype is None else plain[key].to(dtype).float()
                assert torch.equal(numbers_of(tensor).float(), expected.float()), key
        back = load_file(convert(path, tmp_path / f"{dtype}.safetensors", "ldm"))
        assert {key: one.dtype for key, one in back.items() if one.numel()} == dict.fromkeys(
            (key for key, one in plain.items() if one.numel()), torch.float32 if dtype is None else dtype
        )


def test_what_shapes_do_not_tell_survives(folder, tmp_path):
    path = convert(folder, tmp_path / "model.gguf", "gguf", gguf_type="q4_0")
    found = identify(path)
    assert (found.prediction.value, found.prediction.confidence) == ("v", "certain")
    assert found.config == load_model(folder, device="meta").require_unet().config
    fields = gguf.GGUFReader(path).fields
    assert fields["general.quantization_version"].contents() == 2
    assert "general.architecture" not in fields, "as by stable-diffusion.cpp"


def test_the_command_line_writes_it_and_draws_from_it(folder, tmp_path, capsys):
    path = tmp_path / "model.gguf"
    assert main(["convert", str(folder), str(path), "--to", "gguf", "--type", "q8_0"]) == 0
    assert "wrote" in capsys.readouterr().out
    pictures = [
        undertow.load(source, dtype=torch.float32).generate("an owl", steps=1, seed=3, size=(32, 32)).latents
        for source in (path, folder)
    ]
    error = (pictures[0] - pictures[1]).norm() / pictures[1].norm()
    assert 0 < error < 0.05, "8.5 bits: near, and not the same"
    assert main(["convert", str(folder), str(path), "--to", "gguf"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["convert", str(folder), str(path), "--to", "gguf", "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("--to", "gguf", "--type", "iq2_xs"), "iq2_xs needs an importance matrix, which undertow does not measure"),
        (("--to", "gguf", "--type", "q4_K"), "q4_K is read and not written: the package gguf has no quantizer for it"),
        (("--to", "gguf", "--type", "tq2_0"), "tq2_0 has three values for a weight"),
        (("--to", "gguf", "--type", "q9_0"), "'q9_0', expected one of f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0"),
        (("--to", "gguf", "--dtype", "fp16"), "here it is called f16"),
        (("--to", "ldm", "--dtype", "q8_0"), "expected a type that a ldm file or folder can hold; write GGUF"),
    ],
)  # fmt: skip
def test_types_that_are_not_written_are_refused_with_the_reason(typed, said, folder, tmp_path, capsys):
    assert main(["convert", str(folder), str(tmp_path / "model.gguf"), *typed]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_in_python_too(folder, tmp_path):
    with pytest.raises(InvalidInput, match="needs an importance matrix"):
        convert(folder, tmp_path / "model.gguf", "gguf", gguf_type="iq1_s")
    with pytest.raises(InvalidInput, match=r"a file that ends in \.gguf"):
        convert(folder, tmp_path / "model.safetensors", "gguf")


def test_a_text_encoder_that_no_family_has_is_refused_and_its_unet_is_not(tmp_path, capsys):
    emoji = embedded_models()["emoji"]
    assert main(["convert", str(emoji), str(tmp_path / "model.gguf"), "--to", "gguf", "--type", "q8_0"]) == 2
    assert (
        "its tokenizer, of 974 words, has no place in a GGUF file: convert its folder unet alone"
        in capsys.readouterr().err
    )
    path = tmp_path / "unet.gguf"
    assert main(["convert", str(emoji / "unet"), str(path), "--to", "gguf", "--type", "q8_0"]) == 0
    assert undertow.load_unet(path).config == undertow.load_unet(emoji / "unet").config


def test_a_network_without_ldm_names_is_refused(tmp_path):
    save_unet(build(MPIX), tmp_path / "unet")
    with pytest.raises(ConfigError, match="LDM has no names for a U-Net without text"):
        convert(tmp_path / "unet", tmp_path / "model.gguf", "gguf")


def test_numbers_that_blocks_cannot_hold_are_refused_by_name(plain, folder, tmp_path):
    name = next(key for key, one in plain.items() if is_quantized(key, tuple(one.shape), 32))
    metadata = {key: str(one.contents()) for key, one in gguf.GGUFReader(
        convert(folder, tmp_path / "fine.gguf", "gguf")).fields.items() if "." in key}  # fmt: skip
    for value in (float("nan"), 1e6):
        bad = {**plain, name: plain[name].clone()}
        bad[name].view(-1)[0] = value
        save_file(bad, tmp_path / "bad.safetensors", metadata=metadata)
        with pytest.raises(DamagedWeights, match="numbers that Q8_0 cannot hold"):
            convert(tmp_path / "bad.safetensors", tmp_path / "bad.gguf", "gguf", gguf_type="q8_0")
        assert not (tmp_path / "bad.gguf").exists()


def test_without_the_package_it_says_what_to_install(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingDependency, match=r"'gguf': pip install 'undertow\[gguf\]'"):
        convert(folder, tmp_path / "model.gguf", "gguf", gguf_type="q8_0")
    assert not list(tmp_path.iterdir())
