"""Files that do not fit, are damaged, or are something else: named before a weight is touched. Cases L11 and H1."""

import json
import struct

import pytest
import torch
from torch import Tensor

from tests.adapters.lora.comparing import targets_of, unet_of
from tests.adapters.lora.files import is_attention, kohya, layers_of, normal, write
from tests.golden.minis import M9, M15, build
from undertow.adapters.lora import lora_source
from undertow.adapters.lora.lora_file import describe_lora, read_lora
from undertow.adapters.lora.targets import Targets, targets_of_config
from undertow.errors import (
    AdapterMismatch,
    CheckpointError,
    CorruptFile,
    DamagedWeights,
    UnknownCheckpoint,
    UnsafeFile,
    UnsupportedModel,
)
from undertow.unet.presets import PRESETS

STEM = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def pair_of(stem: str = STEM, width: int = 128, inputs: int | None = None) -> dict[str, Tensor]:
    inputs = width if inputs is None else inputs
    return {
        f"{stem}.lora_down.weight": normal(4, inputs, seed="down"),
        f"{stem}.lora_up.weight": normal(width, 4, seed="up"),
    }


TEXT_READER = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.mark.parametrize(
    ("model", "inputs", "made_for"),
    [
        ("sd15", 1024, "Stable Diffusion 2"),
        ("sd15", 2048, "Stable Diffusion XL"),
        ("sd21", 768, "Stable Diffusion 1"),
        ("sdxl", 768, "Stable Diffusion 1"),
        ("sdxl", 1280, "the Stable Diffusion XL refiner"),
        ("sdxl-refiner", 2048, "Stable Diffusion XL"),
        ("cifar10", 768, "Stable Diffusion 1"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_another_base_model_is_refused_by_the_width_of_its_text(model, inputs, made_for, strict, tmp_path):
    """The values are not numbers: whoever looks at them first says something else."""
    tensors = {name: tensor * float("nan") for name, tensor in pair_of(TEXT_READER, 640, inputs).items()}
    path = write(tmp_path / "lora.safetensors", tensors)
    with pytest.raises(AdapterMismatch, match=rf"made for {made_for} .*attn2_to_k reads text {inputs} wide") as error:
        read_lora(path, targets_of_config(PRESETS[model]()), strict=strict)
    assert error.value.made_for == made_for
    assert describe_lora(path).base.title == made_for


def test_without_that_layer_names_and_header_hint_at_the_base_model(tmp_path):
    stem = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    path = write(tmp_path / "lora.safetensors", {**pair_of(), **pair_of(stem)})
    with pytest.raises(AdapterMismatch, match=r"made for Stable Diffusion XL.*second text encoder.*0 text encoders"):
        read_lora(path, targets_of("M15"))
    header = {"ss_base_model_version": "sd_v2_768_v"}
    path = write(tmp_path / "lora.safetensors", {**pair_of(), **pair_of("lora_unet_who")}, header)
    with pytest.raises(AdapterMismatch, match="made for Stable Diffusion 2: the header says ss_base_model_version"):
        read_lora(path, targets_of("M15"))


@pytest.mark.parametrize(
    ("stem", "model"),
    [
        ("lora_unet_double_blocks_0_img_attn_qkv", "FLUX"),
        ("transformer.single_transformer_blocks.3.attn.to_q", "FLUX"),
        ("diffusion_model.double_blocks.0.img_mlp.0", "FLUX"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv", "Stable Diffusion 3"),
        ("transformer.transformer_blocks.0.attn.add_q_proj", "Stable Diffusion 3"),
        ("transformer.transformer_blocks.0.img_mlp.net.2", "Qwen-Image"),
        ("diffusion_model.blocks.0.self_attn.q", "Wan"),
        ("lora_te3_encoder_block_0_layer_0_SelfAttention_q", "T5"),
        ("lora_prior_down_blocks_0_1_attn", "Stable Cascade"),
        ("lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", "LLLite"),
        ("unet.down_blocks.0.motion_modules.0.temporal_transformer.proj_in", "AnimateDiff"),
        ("transformer.blocks.0.attn1.to_q", "diffusion transformer"),
    ],
)
def test_adapters_of_other_networks_are_refused_by_name(stem, model, tmp_path):
    path = write(tmp_path / "lora.safetensors", {**pair_of(stem), **pair_of()})
    for strict in (True, False):
        with pytest.raises(UnsupportedModel, match=model):
            read_lora(path, targets_of("M15"), strict=strict)
    with pytest.raises(UnsupportedModel, match=model):
        describe_lora(path)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"model.diffusion_model.input_blocks.0.0.weight": (4, 4, 3, 3)}, "a model of its own"),
        ({"lora_controlnet": (1,), f"{STEM}.up": (2, 2)}, "Control-LoRA"),
        ({"ip_adapter.1.to_k_ip.weight": (4, 4), "image_proj.proj.weight": (4, 4)}, "IP-Adapter"),
        ({"emb_params": (2, 64)}, "textual inversion"),
        ({"double_blocks.0.img_attn.qkv.weight": (2, 2)}, "FLUX"),
        ({f"{STEM}.lora_down.weight": (4, 8), "x.weight_scale": (1,)}, "quantized"),
    ],
)
def test_files_that_are_no_lora_are_named(tensors, words, tmp_path):
    values = {name: normal(*shape, seed=name) for name, shape in tensors.items()}
    with pytest.raises(UnsupportedModel, match=words):
        read_lora(write(tmp_path / "x.safetensors", values), targets_of("M15"))


@pytest.mark.parametrize("tensors", [{"some.thing": torch.ones(2)}, {"a.weight": torch.ones(2, 2)}])
def test_a_file_of_unknown_names_is_no_adapter(tensors, tmp_path):
    with pytest.raises(UnknownCheckpoint, match="is called as in an adapter"):
        read_lora(write(tmp_path / "x.safetensors", tensors), targets_of("M15"))


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        ("set_weight", "whole weights"),
        ("oft_diag", "version 2"),
        ("ia3_l", "PEFT's form"),
        ("bias_indices", "sparse residuals"),
        ("lora_embedding_A", "token embeddings"),
    ],
)
def test_kinds_that_are_not_read_are_named(leaf, words, tmp_path):
    path = write(tmp_path / "lora.safetensors", {**pair_of(), f"{STEM}2.{leaf}": torch.ones(2, 2)})
    with pytest.raises(UnsupportedModel, match=words):
        read_lora(path, targets_of("M15"))
    lora = read_lora(path, targets_of("M15"), strict=False)
    assert lora.report.unmatched == (f"{STEM}2.{leaf}",)
    assert any(words in note for note in lora.report.notes)


WRONG_SETS = {
    "down without up": ({"lora_down.weight": (4, 128)}, "lora_up|without up"),
    "up without down": ({"lora_up.weight": (128, 4), "alpha": ()}, "without down"),
    "alpha alone": ({"alpha": ()}, "nothing to go with it"),
    "half a LoHa": ({"hada_w1_a": (128, 4), "hada_w1_b": (4, 128)}, "without hada_w2_a, hada_w2_b"),
    "half a LoKr": ({"lokr_w1": (8, 8), "lokr_w2_a": (16, 4)}, "without lokr_w2_b"),
    "one Tucker core": (
        {**{f"hada_w{w}_{f}": (128, 128) for w in "12" for f in "ab"}, "hada_t1": (128, 128, 1, 1)},
        "hada_t1 and hada_t2",
    ),
    "a quarter of GLoRA": ({"a1.weight": (128, 4)}, "without a2, b1, b2"),
    "IA3 without its mark": ({"on_input": ()}, "without weight"),
    "two algorithms": ({"lora_down.weight": (4, 128), "lora_up.weight": (128, 4), "diff": (128, 128)}, "mixes LoRA"),
    "a leaf of another": (
        {"lora_down.weight": (4, 128), "lora_up.weight": (128, 4), "rescale": (128,)},
        "has rescale, which LoRA has not",
    ),
    "many alphas": ({"lora_down.weight": (4, 128), "lora_up.weight": (128, 4), "alpha": (3,)}, "not one number"),
}


@pytest.mark.parametrize("case", WRONG_SETS)
def test_an_incomplete_layer_is_named(case, tmp_path):
    shapes, words = WRONG_SETS[case]
    tensors = {f"{STEM}.{leaf}": normal(*shape, seed=leaf) for leaf, shape in shapes.items()}
    other = pair_of("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_k")
    path = write(tmp_path / "lora.safetensors", {**other, **tensors})
    for strict in (True, False):
        with pytest.raises(CorruptFile, match=words) as error:
            read_lora(path, targets_of("M15"), strict=strict)
        assert STEM in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("leaf", ["lora_down.weight", "lora_up.weight", "alpha"])
def test_values_that_are_not_numbers_are_named(leaf, value, tmp_path):
    tensors = {**pair_of(), f"{STEM}.alpha": torch.tensor(2.0)}
    tensors[f"{STEM}.{leaf}"].flatten()[-1:].fill_(value)
    with pytest.raises(DamagedWeights, match=f"{STEM}.{leaf}: (NaN|Inf): 1/") as error:
        read_lora(write(tmp_path / "lora.safetensors", tensors), targets_of("M15"))
    assert error.value.tensors == (f"{STEM}.{leaf}",)


def test_unknown_layers_are_named_or_left_out(tmp_path):
    unknown = [f"lora_unet_mid_block_attentions_{index}_proj" for index in range(7)]
    tensors = {**pair_of(), "a.strange.name": torch.ones(2)}
    for stem in unknown:
        tensors |= pair_of(stem)
    path = write(tmp_path / "lora.safetensors", tensors)
    with pytest.raises(AdapterMismatch, match="8 of its names are unknown in Stable Diffusion 1") as error:
        read_lora(path, targets_of("M15"))
    assert set(error.value.unmatched) == {*unknown, "a.strange.name"}
    assert sum(str(error.value).count(stem) for stem in error.value.unmatched) == 5
    lora = read_lora(path, targets_of("M15"), strict=False)
    assert sum(map(len, lora.updates.values())) == 1
    assert len(lora.report.unmatched) == 7 * 2 + 1
    assert len(lora.report.matched) == 2


@pytest.mark.parametrize("strict", [True, False])
def test_nothing_matched_is_never_silent(strict, tmp_path):
    path = write(tmp_path / "lora.safetensors", pair_of("lora_unet_down_blocks_9_attentions_0_proj_in"))
    with pytest.raises(AdapterMismatch, match="its only layer is none of Stable Diffusion 1"):
        read_lora(path, targets_of("M15"), strict=strict)
    with pytest.raises(AdapterMismatch, match="its only layer is none"):
        describe_lora(path, targets_of("M15"))
    assert describe_lora(path).layers == 1


def test_layers_of_another_shape_are_named_or_left_out(tmp_path):
    other = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_k"
    path = write(tmp_path / "lora.safetensors", {**pair_of(), **pair_of(other, 128, 96)})
    with pytest.raises(AdapterMismatch, match="1 of its layers has another shape") as error:
        read_lora(path, targets_of("M15"))
    assert error.value.reshaped == (other,)
    assert read_lora(path, targets_of("M15"), strict=False).report.reshaped == (other,)
    bias = {**pair_of(), f"{STEM}.diff_b": torch.ones(127)}
    with pytest.raises(AdapterMismatch, match=r"other shapes|its only layer is none"):
        read_lora(write(tmp_path / "bias.safetensors", bias), targets_of("M15"))


def test_a_lora_of_conv_in_and_a_model_of_nine_channels(tmp_path):
    inpainting = Targets.of(build(M9))
    layers = layers_of(unet_of("M15"), lambda name: name == "conv_in" or is_attention(name))
    path = write(tmp_path / "lora.safetensors", kohya(layers))
    with pytest.raises(AdapterMismatch, match="conv_in of a U-Net of other input channels than this one's 9"):
        read_lora(path, inpainting)
    lora = read_lora(path, inpainting, strict=False)
    assert lora.report.reshaped == ("lora_unet_conv_in",)
    assert len(lora.updates["unet"]) == len(layers) - 1
    assert M15.config.in_channels == 4


def test_a_layer_that_is_there_twice_is_refused(tmp_path):
    dotted = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    path = write(tmp_path / "lora.safetensors", {**pair_of(), **pair_of(dotted)})
    with pytest.raises(CorruptFile, match="are the same layer"):
        read_lora(path, targets_of("M15"))


@pytest.mark.parametrize(
    "settings",
    [
        "{",
        "[1]",
        json.dumps({"unet.alpha_pattern": {"(a+)+$": 2}}),
        json.dumps({"unet.alpha_pattern": {"a?" * 34 + "a" * 34: 2}}),
        json.dumps({"unet.alpha_pattern": {"(a|aa)*" * 24: 2}}),
        json.dumps({"unet.alpha_pattern": {"[z-a]": 2}}),
        json.dumps({"unet.alpha_pattern": {f".*{index}x": 2 for index in range(33)}}),
        json.dumps({"unet.alpha_pattern": {"x" * 201: 2}}),
        json.dumps({"unet.alpha_pattern": {"(": 2}}),
        json.dumps({"unet.alpha_pattern": {"to_q": "many"}}),
        json.dumps({"unet.alpha_pattern": [1]}),
        json.dumps({"unet.alpha_pattern": {"to_q": "nan"}}),
        json.dumps({"unet.rank_pattern": {"to_q": None}}),
        json.dumps({"unet.rank_pattern": {"to_q": 0}}),
    ],
)
def test_a_header_that_cannot_be_read_or_takes_long_to_match(settings, tmp_path):
    path = write(tmp_path / "lora.safetensors", pair_of(), {"lora_adapter_metadata": settings})
    with pytest.raises(CorruptFile):
        read_lora(path, targets_of("M15"))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.uint8, torch.int64])
def test_whole_numbers_are_no_weights(dtype, tmp_path):
    """They were quantized by scales that the file does not name, or are masks."""
    tensors = {name: tensor.to(dtype) for name, tensor in pair_of().items()}
    path = write(tmp_path / "lora.safetensors", tensors)
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(UnsupportedModel, match=rf"a LoRA whose tensors are {kind} \(.*lora_.*\).*save it in float16"):
        read_lora(path, targets_of("M15"))
    with pytest.raises(UnsupportedModel, match=kind):
        describe_lora(path)


@pytest.mark.parametrize("shape", [(), (4,)])
@pytest.mark.parametrize("ending", ["lora_down.weight", "lora_up.weight"])
def test_numbers_and_vectors_are_no_matrices(ending, shape, tmp_path):
    tensors = {name: torch.ones(shape) if name.endswith(ending) else tensor for name, tensor in pair_of().items()}
    with pytest.raises(CorruptFile, match=f"{ending} has the shape .*, which is no matrix"):
        read_lora(write(tmp_path / "lora.safetensors", tensors), targets_of("M15"))


def test_many_names_and_wildcards_that_would_take_minutes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lora_source, "MATCHED_CHARACTERS", 100)
    settings = json.dumps({"unet.alpha_pattern": {f".*{index}x": 2 for index in range(4)}})
    path = write(tmp_path / "lora.safetensors", pair_of(), {"lora_adapter_metadata": settings})
    with pytest.raises(CorruptFile, match="4 name patterns with wildcards for 1 layers; write out the layers' names"):
        read_lora(path, targets_of("M15"))


def test_what_is_no_safetensors_file(tmp_path):
    """H1, as for models: only the safetensors library reads tensors, and only what begins like its files."""
    whole = write(tmp_path / "whole.safetensors", pair_of()).read_bytes()
    twins = write(tmp_path / "twins.safetensors", {**pair_of("lora_a"), **pair_of("lora_b")}).read_bytes()
    crafted = {
        "missing": None,
        "empty": b"",
        "html": b"<!DOCTYPE html><html>",
        "pointer": b"version https://git-lfs.github.com/spec/v1\n",
        "gguf": b"GGUF" + bytes(20),
        "truncated": whole[:-8],
        "longer": whole + bytes(8),
        "header too long": struct.pack("<Q", 2**62) + whole[8:],
        "duplicate": twins.replace(b'"lora_b.', b'"lora_a.'),
    }
    for case, content in crafted.items():
        path = tmp_path / f"{case}.safetensors"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CheckpointError):
            read_lora(path, targets_of("M15"))
    torch.save(pair_of(), tmp_path / "lora.pt")
    with pytest.raises(UnsafeFile, match="save it as safetensors"):
        read_lora(tmp_path / "lora.pt", targets_of("M15"))
    (tmp_path / "peft").mkdir()
    torch.save(pair_of(), tmp_path / "peft" / "adapter_model.bin")
    with pytest.raises(UnsafeFile):
        read_lora(tmp_path / "peft", targets_of("M15"))


def test_a_folder_with_several_files_needs_a_choice(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.safetensors", pair_of())
    with pytest.raises(UnknownCheckpoint, match="2 files of weights"):
        read_lora(tmp_path, targets_of("M15"))
