"""The kind of an adapter, from names and shapes; what is no adapter that undertow runs is refused by its name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from undertow.adapters.kinds import adapter_title
from undertow.errors import UnknownCheckpoint, UnsupportedModel


def written(folder: Path, names: list[str] | dict[str, tuple[int, ...]], file: str = "file.safetensors") -> Path:
    """A file with tensors of these names, and of these shapes if they matter."""
    shapes = names if isinstance(names, dict) else dict.fromkeys(names, (1, 1))
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, folder / file)
    return folder / file


KINDS = {
    "a LoRA": [
        ["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"],
        ["unet.down_blocks.0.attentions.0.proj_in.lora_A.weight"],
        ["lora_unet_mid_block_attentions_0_proj_in.hada_w1_a"],
    ],
    "a ControlNet": [
        ["zero_convs.0.0.weight", "time_embed.0.weight"],
        ["control_model.zero_convs.0.0.weight", "model.diffusion_model.out.2.weight"],
        ["controlnet_cond_embedding.conv_in.weight", "conv_in.weight"],
        ["module.controlnet_cond_embedding.conv_in.weight"],
    ],
    "a Control-LoRA": [
        ["lora_controlnet", "zero_convs.0.0.weight", "input_blocks.0.0.up"],
        ["input_hint_block.0.weight", "zero_convs.0.0.weight", "input_blocks.0.0.up", "input_blocks.0.0.down"],
    ],
    "a T2I-Adapter": [
        ["body.0.block1.weight", "conv_in.weight"],
        ["body.0.body.0.block1.weight"],
        ["adapter.body.0.resnets.0.block1.weight"],
        ["adapter.body.0.block1.weight"],
    ],
    "an IP-Adapter": [["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight", "ip_adapter.1.to_v_ip.weight"]],
}


@pytest.mark.parametrize(("kind", "names"), [(kind, names) for kind, files in KINDS.items() for names in files])
def test_the_names_of_tensors_tell(kind, names, tmp_path):
    assert adapter_title(written(tmp_path, names, "any_name.safetensors")) == kind
    torch.save({name: torch.ones(1, 1) for name in names}, tmp_path / "any_name.pth")
    if names is KINDS[kind][0]:  # every pickle is a process
        assert adapter_title(tmp_path / "any_name.pth") == kind


@pytest.mark.parametrize(("kind", "title"), [("a ControlNet", "ControlNetModel"), ("a T2I-Adapter", "T2IAdapter")])
def test_folders_of_diffusers(kind, title, tmp_path):
    written(tmp_path, KINDS[kind][2], "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": title}))
    assert adapter_title(tmp_path) == kind
    assert adapter_title(tmp_path / "diffusion_pytorch_model.safetensors") == kind


CONTROL = ["controlnet_cond_embedding.conv_in.weight", "conv_in.weight"]

OTHERS = {
    "a ControlNet-Union": [*CONTROL, "task_embedding", "transformer_layes.0.ln_1.weight"],
    "a ControlNet-XS": [*CONTROL, "control_to_base_for_conv_in.weight"],
    "a ControlNet-LLLite": ["lllite_unet_input_blocks_4_1_proj_in.down.0.weight"],
    "a ControlNet of differences": ["difference", "control_model.zero_convs.0.0.weight"],
    "a SparseCtrl of AnimateDiff": [
        *CONTROL,
        "controlnet_mid_block.weight",
        "down_blocks.0.motion_modules.0.norm.weight",
    ],
    "a ControlNet of a diffusion transformer": ["controlnet_blocks.0.weight", "transformer_blocks.0.attn.to_q.weight"],
    "a ControlNet of Kolors": [*CONTROL, "encoder_hid_proj.weight"],
    "a BrushNet": ["brushnet_mid_block.weight", "conv_in_condition.weight"],
    "a CoAdapter's fuser": ["spatial_feat_mapping.0.weight", "task_embedding", "transformer_layes.0.ln_1.weight"],
    "a T2I style adapter": ["style_embedding", "transformer_layes.0.ln_1.weight"],
    "an IP-Adapter FaceID": ["image_proj.proj.0.weight", "ip_adapter.0.to_q_lora.down.weight"],
    "a PhotoMaker": ["id_encoder.visual_projection.weight"],
    "Stable Diffusion 3": ["joint_blocks.0.x_block.attn.qkv.weight"],
    "a textual inversion": ["emb_params"],
}


@pytest.mark.parametrize("model", OTHERS)
def test_relatives_and_strangers_are_refused_by_name(model, tmp_path):
    with pytest.raises(UnsupportedModel, match=f"this is {model}.*, which undertow does not run; ") as caught:
        adapter_title(written(tmp_path, OTHERS[model]))
    assert caught.value.remedy


def test_classes_of_diffusers_that_are_no_adapter_here(tmp_path):
    written(tmp_path, CONTROL, "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "ControlNetUnionModel"}))
    with pytest.raises(
        UnsupportedModel, match=r"this is a ControlNetUnionModel.* use a ControlNetModel or a T2IAdapter"
    ):
        adapter_title(tmp_path)


def test_models_of_their_own_and_unknown_files(tmp_path):
    unet = written(tmp_path, ["conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"])
    with pytest.raises(UnknownCheckpoint, match=r"a model of its own \(U-Net\), not an adapter"):
        adapter_title(unet)
    with pytest.raises(UnknownCheckpoint, match=r"none of its 1 tensors is called as in an adapter \('strange'\)"):
        adapter_title(written(tmp_path, ["strange"]))
    written(tmp_path, ["strange"], "another.safetensors")
    with pytest.raises(UnknownCheckpoint, match=r"2 files of weights .* give one of them"):
        adapter_title(tmp_path)
