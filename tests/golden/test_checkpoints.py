"""Checkpoints of the community against diffusers' readers: cases N2 to N5 of the parity plan."""

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from tests.checkpoints.crafted import assert_same_weights, ldm_shapes, ldm_tensors, sparse_file, unet_shapes
from tests.few import few
from tests.golden.minis import M15, M21, MLCM, MRF, MSSD, MXL, build, build_twin, randomize
from undertow.checkpoints.files.header import TensorInfo
from undertow.checkpoints.identify.checkpoint import OpenOptions
from undertow.checkpoints.identify.identification import identify
from undertow.checkpoints.keymap import BlockLayout, openclip_from_ours, openclip_to_ours, unet_renaming, vae_renaming
from undertow.checkpoints.keymap.contents import read_contents
from undertow.checkpoints.keymap.vae_names import vae_levels, vae_mapping
from undertow.checkpoints.read.unet_loading import load_unet_from
from undertow.checkpoints.write.unet_folder import save_unet
from undertow.errors import UnsupportedModel
from undertow.unet.config import UNetConfig
from undertow.unet.diffusers_config import config_to_diffusers

FAMILIES = {
    "sd15": (UNetConfig.sd15(), "sd1", "base"),
    "sd15_inpaint": (UNetConfig.sd15_inpaint(), "sd1", "inpaint"),
    "instruct_pix2pix": (UNetConfig.instruct_pix2pix(), "sd1", "pix2pix"),
    "lcm_sd15": (UNetConfig.lcm_sd15(), "sd1", "lcm"),
    "sd21": (UNetConfig.sd21(), "sd2", "base"),
    "sd2_inpaint": (UNetConfig.sd2_inpaint(), "sd2", "inpaint"),
    "sdxl": (UNetConfig.sdxl(), "sdxl", "base"),
    "sdxl_inpaint": (UNetConfig.sdxl_inpaint(), "sdxl", "inpaint"),
    "sdxl_refiner": (UNetConfig.sdxl_refiner(), "sdxl_refiner", "base"),
    "lcm_sdxl": (UNetConfig.lcm_sdxl(), "sdxl", "lcm"),
    "ssd_1b": (UNetConfig.ssd_1b(), "sdxl", "ssd_1b"),
    "vega": (UNetConfig.vega(), "sdxl", "vega"),
}
TEXT_MINIS = {"M15": M15, "M21": M21, "MXL": MXL, "MRF": MRF}


@pytest.mark.parametrize("name", ["sd15", "sd15_inpaint", "sd21", "sdxl", "sdxl_refiner"])
def test_ldm_names_are_those_that_diffusers_reads(name):
    """N2: full-size names, through diffusers' own converter, are the names of diffusers' class."""
    config = FAMILIES[name][0]
    ldm = {key: torch.zeros(1) for key in ldm_shapes(config)}
    converted = convert_ldm_unet_checkpoint(ldm, config_to_diffusers(config))
    assert sorted(converted) == sorted(unet_shapes(config))


@pytest.mark.parametrize("name", FAMILIES)
def test_ldm_names_go_there_and_back(name):
    """N2: a bijection, from the names alone."""
    config = FAMILIES[name][0]
    ours = list(unet_shapes(config))
    renaming = unet_renaming(BlockLayout.of_config(config))
    ldm = [renaming.to_foreign(key) for key in ours]
    assert len(set(ldm)) == len(ours)
    found = unet_renaming(BlockLayout.of_ldm_names(ldm))
    assert [found.to_ours(key) for key in ldm] == ours


def test_ldm_names_have_the_numbers_of_compvis():
    """N2: anchors written out by hand from openaimodel.py."""
    renaming = unet_renaming(BlockLayout.of_config(UNetConfig.sd15()))
    anchors = {
        "time_embed.2.bias": "time_embedding.linear_2.bias",
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (
            "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
        ),
        "input_blocks.3.0.op.weight": "down_blocks.0.downsamplers.0.conv.weight",
        "input_blocks.10.0.in_layers.2.weight": "down_blocks.3.resnets.0.conv1.weight",
        "middle_block.2.out_layers.3.bias": "mid_block.resnets.1.conv2.bias",
        "output_blocks.2.1.conv.weight": "up_blocks.0.upsamplers.0.conv.weight",
        "output_blocks.5.2.conv.weight": "up_blocks.1.upsamplers.0.conv.weight",
        "output_blocks.11.0.skip_connection.weight": "up_blocks.3.resnets.2.conv_shortcut.weight",
        "out.2.weight": "conv_out.weight",
    }
    for ldm, ours in anchors.items():
        assert renaming.to_ours(ldm) == ours
        assert renaming.to_foreign(ours) == ldm
    assert renaming.to_ours("input_blocks.1.7.weight") is None
    assert renaming.to_ours("input_blocks.100.0.in_layers.2.weight") is None


def test_vae_names_and_weights_equal_diffusers_converter():
    """N2: the whole AutoencoderKL through both, values included."""
    config = {
        "block_out_channels": [32, 64, 64],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "layers_per_block": 2,
    }
    twin = AutoencoderKL(**config)
    randomize(twin, seed=0)
    renaming = vae_renaming(3)
    ldm = {}
    for name, tensor in twin.state_dict().items():
        foreign = renaming.to_foreign(name)
        assert foreign is not None, name
        ldm[foreign] = vae_mapping(foreign, name).join([tensor])
    assert vae_levels(ldm) == 3
    assert ldm["decoder.mid.attn_1.q.weight"].ndim == 4
    converted = convert_ldm_vae_checkpoint(dict(ldm), config)
    twin.load_state_dict(converted)  # strict: names and shapes
    for name, tensor in twin.state_dict().items():
        foreign = renaming.to_foreign(name)
        assert torch.equal(dict(vae_mapping(foreign, name).split(ldm[foreign]))[name], tensor)


def test_openclip_names_and_weights_equal_diffusers_converter():
    """N2: q, k and v in one matrix, the projection transposed."""
    twin = CLIPTextModelWithProjection(
        CLIPTextConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            vocab_size=100,
            projection_dim=48,
            pad_token_id=1,
            bos_token_id=98,
            eos_token_id=99,
        )
    )
    randomize(twin, seed=1)
    ours = {name: tensor for name, tensor in twin.state_dict().items() if not name.endswith("position_ids")}
    openclip = {
        mapping.foreign: mapping.join([ours[name] for name in mapping.ours]) for mapping in openclip_from_ours(ours)
    }
    assert openclip["text_projection"].shape == (64, 48)
    assert openclip["transformer.resblocks.2.attn.in_proj_weight"].shape == (192, 64)
    converted = convert_open_clip_checkpoint(twin, dict(openclip), prefix="")
    assert sorted(converted) == sorted(ours)
    assert all(torch.equal(converted[name], tensor) for name, tensor in ours.items())
    back = {name: tensor for key, value in openclip.items() for name, tensor in openclip_to_ours(key).split(value)}
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in ours.items())


@pytest.mark.parametrize("name", TEXT_MINIS)
def test_a_single_file_loads_here_and_in_diffusers(name, tmp_path):
    """N3: LDM names in one file; the same weights arrive in both, bit for bit."""
    unet = build(TEXT_MINIS[name])
    file = tmp_path / "model.safetensors"
    save_file(ldm_tensors(unet), file)
    loaded = load_unet_from(file, opening=OpenOptions(config=unet.config))
    assert_same_weights(loaded, unet)
    save_unet(unet, tmp_path / "config" / "unet")
    theirs = UNet2DConditionModel.from_single_file(
        str(file), config=str(tmp_path / "config"), subfolder="unet", local_files_only=True
    )
    assert_same_weights(theirs, unet)


@pytest.mark.parametrize("mini", few([M15, MLCM, MSSD], 1), ids=["M15", "MLCM", "MSSD"])
@pytest.mark.parametrize("dialect", ["ldm", "diffusers"])
@pytest.mark.parametrize(
    "prefix",
    ["", "model.diffusion_model.", "diffusion_model.", "unet.", "state_dict.state_dict.model.diffusion_model."],
)
def test_every_prefix_loads(mini, dialect, prefix, tmp_path):
    """N4: names with and without prefixes, wrapped twice, with junk beside them."""
    unet = build(mini)
    tensors = (
        ldm_tensors(unet, prefix) if dialect == "ldm" else {f"{prefix}{k}": v for k, v in unet.state_dict().items()}
    )
    junk = {"betas": torch.ones(4), "model_ema.decay": torch.ones(()), "posterior_mean_coef1": torch.ones(4)}
    save_file(tensors | junk, tmp_path / "model.safetensors")
    loaded = load_unet_from(tmp_path / "model.safetensors", opening=OpenOptions(config=unet.config))
    assert_same_weights(loaded, unet)


@pytest.mark.parametrize("prefix", ["first_stage_model.", "vae.", ""])
def test_the_vae_is_found_under_every_prefix(prefix):
    """N4."""
    renaming = vae_renaming(2)
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=[32, 32],
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            layers_per_block=2,
        )
    info = {
        f"{prefix}{renaming.to_foreign(name)}": TensorInfo("F32", tuple(tensor.shape))
        for name, tensor in vae.state_dict().items()
    }
    contents = read_contents(info)
    assert set(contents.parts) == {"vae"}
    assert not contents.unknown
    assert set(contents.parts["vae"].shapes(info)) == set(vae.state_dict())


@pytest.mark.parametrize("prefix", ["control_model.", ""])
def test_a_controlnet_is_no_unet(prefix):
    """N4: it has a U-Net's encoder, and must not be taken for one."""
    info = {
        name: TensorInfo("F16", shape)
        for name, shape in ldm_shapes(UNetConfig.sd15(), prefix).items()
        if not name.startswith(f"{prefix}out")
    }
    info[f"{prefix}zero_convs.0.0.weight"] = TensorInfo("F16", (320, 320, 1, 1))
    assert set(read_contents(info).parts) == {"controlnet"}


@pytest.mark.parametrize("dialect", ["ldm", "diffusers"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_identified(name, dialect, tmp_path):
    """N5: from a full-size file's names and shapes; the derived architecture is the published one."""
    config, family, variant = FAMILIES[name]
    shapes = ldm_shapes(config) if dialect == "ldm" else unet_shapes(config)
    found = identify(sparse_file(tmp_path / "model.safetensors", shapes))
    assert (found.family, found.variant) == (family, variant)
    assert found.config == config


OTHERS = {
    "Stable Video Diffusion": ("model.diffusion_model.input_blocks.1.0.time_stack.in_layers.0.weight", (320,)),
    "Stable Diffusion 3": ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", (4608, 1536)),
    "FLUX": ("double_blocks.0.img_attn.qkv.weight", (9216, 3072)),
    "AnimateDiff": ("down_blocks.0.motion_modules.0.temporal_transformer.norm.weight", (320,)),
    "Stable Cascade": ("clip_txt_mapper.weight", (2048, 1280)),
    "PixArt": ("adaln_single.linear.weight", (6912, 1152)),
    "Zero123": ("cc_projection.weight", (768, 772)),
    "LoRA": ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", (4, 320, 1, 1)),
    "IP-Adapter": ("image_proj.proj.weight", (3072, 1024)),
    "Control-LoRA": ("lora_controlnet", (0,)),
    "textual inversion": ("emb_params", (4, 768)),
    "T5": ("encoder.block.0.layer.0.SelfAttention.q.weight", (4096, 4096)),
    "upscaler": ("model.1.sub.0.RDB1.conv1.0.weight", (32, 64, 3, 3)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_refused_by_name(name, tmp_path):
    """N5."""
    key, shape = OTHERS[name]
    file = sparse_file(tmp_path / "model.safetensors", {key: shape, "something.else": (1,)})
    with pytest.raises(UnsupportedModel, match=name):
        identify(file)


def _with(shapes, **replaced):
    return {**shapes, **{f"model.diffusion_model.{key.replace('__', '.')}": shape for key, shape in replaced.items()}}


RELATIVES = {
    "x4 upscaler": _with(ldm_shapes(UNetConfig.sd21()), input_blocks__0__0__weight=(320, 7, 3, 3)),
    "depth": _with(ldm_shapes(UNetConfig.sd21()), input_blocks__0__0__weight=(320, 5, 3, 3)),
    "unCLIP": _with(
        ldm_shapes(UNetConfig.sd21()), label_emb__0__0__weight=(1280, 2048), label_emb__0__2__weight=(1280, 1280)
    ),
    "Stable Video Diffusion": _with(
        ldm_shapes(UNetConfig.sd21()), input_blocks__1__0__time_stack__in_layers__0__weight=(320,)
    ),
}


@pytest.mark.parametrize("name", RELATIVES)
def test_relatives_of_stable_diffusion_are_refused_by_name(name, tmp_path):
    """N5: they share most names and shapes with SD2, and work differently."""
    with pytest.raises(UnsupportedModel, match=name):
        identify(sparse_file(tmp_path / "model.safetensors", RELATIVES[name]))


def test_a_mini_is_the_twin_of_what_the_file_holds():
    """The comparisons above compare something: two builds differ."""
    assert not torch.equal(build(M15, seed=1).conv_in.weight, build_twin(M15, build(M15)).conv_in.weight)
