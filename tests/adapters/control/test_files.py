"""Files of control networks: every form is read, and what does not fit is refused with what it is for."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from tests.golden.controls import controlnet, ldm_name, ldm_tensors, t2i
from tests.golden.minis import M15, MINIS, pair, randomize
from undertow.adapters.control.config import ControlNetConfig
from undertow.adapters.control.control_file import read_control, write_control
from undertow.adapters.control.controlnet import ControlNet
from undertow.adapters.control.derive import derive_control_config, made_for_model, require_fit
from undertow.errors import (
    AdapterMismatch,
    ConfigError,
    CorruptFile,
    DamagedWeights,
    InvalidInput,
    KeyMismatch,
    UnknownCheckpoint,
    UnsafeFile,
)
from undertow.unet.config import CrossAttention, Level, Middle, UNetConfig
from undertow.unet.unet import UNet


@pytest.fixture(scope="module")
def base() -> UNet:
    return pair("M15")[0]


@pytest.fixture(scope="module")
def network() -> ControlNet:
    return controlnet("M15")


def same(one: ControlNet, other: ControlNet) -> bool:
    theirs = other.state_dict()
    return one.config == other.config and all(torch.equal(t, theirs[k]) for k, t in one.state_dict().items())


def test_every_form_of_a_controlnet_is_the_same_network(base, network, tmp_path):
    """diffusers' names alone; the authors' with a U-Net beside them, in a training wrapper, in a pickle."""
    tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    save_file(tensors, tmp_path / "bare.safetensors")
    whole = ldm_tensors(network, "control_model.") | {"model.diffusion_model.out.2.bias": torch.zeros(4)}
    save_file(whole, tmp_path / "whole.safetensors")
    save_file({f"module.{name}": t for name, t in ldm_tensors(network).items()}, tmp_path / "wrapped.safetensors")
    torch.save({"state_dict": ldm_tensors(network), "global_step": 7}, tmp_path / "control_sd15_canny.pth")
    folder = write_control(network, tmp_path / "model" / "controlnet", dtype=torch.float32).parent
    sources = ["bare.safetensors", "whole.safetensors", "wrapped.safetensors", "control_sd15_canny.pth"]
    found = [read_control(source, base) for source in (*(tmp_path / name for name in sources), folder)]
    assert all(same(one.network, network) for one in found)
    assert len({one.content_hash for one in found}) == len(found)
    assert found[3].path == tmp_path / "control_sd15_canny.pth"
    assert found[0].title == "ControlNet"
    assert found[0].size_bytes == 4 * sum(p.numel() for p in network.parameters())
    again = read_control(tmp_path / "bare.safetensors", base)
    assert again.content_hash == found[0].content_hash


def test_half_precision_is_read_in_the_models_type(base, network, tmp_path):
    save_file({name: tensor.half() for name, tensor in ldm_tensors(network).items()}, tmp_path / "fp16.safetensors")
    read = read_control(tmp_path / "fp16.safetensors", base).network
    assert read.dtype == base.dtype == torch.float32
    assert not read.training


def test_shuffle_pools_by_its_name_and_by_its_config(base, network, tmp_path):
    save_file(ldm_tensors(network), tmp_path / "control_v11e_sd15_shuffle_fp16.safetensors")
    assert read_control(tmp_path / "control_v11e_sd15_shuffle_fp16.safetensors", base).network.config.global_pool
    pooled = ControlNet(replace(network.config, global_pool=True, bgr=True, hint_in=3))
    pooled.load_state_dict(network.state_dict())
    read = read_control(write_control(pooled, tmp_path / "folder"), base).network
    assert read.config == pooled.config
    json_file = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert json_file["_class_name"] == "ControlNetModel"
    assert json_file["controlnet_conditioning_channel_order"] == "bgr"


MID = replace(
    MINIS["MXL"].config,
    levels=(Level(channels=32), Level(channels=64), Level(channels=128, attention=CrossAttention(heads=16))),
    middle=Middle(attention=CrossAttention(heads=16, depth=1)),
)
SMALL = replace(
    MINIS["MXL"].config,
    levels=(Level(channels=32), Level(channels=64), Level(channels=128)),
    middle=Middle(attention=CrossAttention(heads=16, depth=0)),
)


@pytest.mark.parametrize("architecture", [MID, SMALL], ids=["mid", "small"])
def test_controlnets_with_less_attention_than_the_unet_are_derived_and_described(architecture, tmp_path):
    unet = pair("MXL")[0]
    network = ControlNet(ControlNetConfig(unet=architecture, hint_channels=(8, 16, 24, 32))).eval()
    randomize(network, 22)
    save_file(dict(network.state_dict()), tmp_path / "bare.safetensors")
    assert same(read_control(tmp_path / "bare.safetensors", unet).network, network)
    assert same(read_control(write_control(network, tmp_path / "model", dtype=torch.float32), unet).network, network)


@pytest.mark.parametrize("config", [UNetConfig.sd15(), UNetConfig.sd21(), UNetConfig.sdxl(), UNetConfig.sdxl_refiner()])
def test_published_architectures_are_derived(config, tmp_path):
    with torch.device("meta"):
        network = ControlNet(ControlNetConfig(unet=config))
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    require_fit(tmp_path, shapes, config)
    assert derive_control_config(shapes, config, tmp_path) == network.config


FAMILIES = {
    "Stable Diffusion 1": UNetConfig.sd15(),
    "Stable Diffusion 2": UNetConfig.sd21(),
    "Stable Diffusion XL": UNetConfig.sdxl(),
}


@pytest.mark.parametrize("made_for", FAMILIES)
def test_another_family_is_refused_with_what_it_is_for(made_for, tmp_path):
    with torch.device("meta"):
        network = ControlNet(ControlNetConfig(unet=FAMILIES[made_for]))
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert made_for_model(shapes) == made_for
    for family, config in FAMILIES.items():
        if family != made_for:
            with pytest.raises(AdapterMismatch, match=f"for {made_for}, and the model is {family}") as caught:
                require_fit(tmp_path, shapes, config)
            assert caught.value.made_for == made_for
            assert "text " in str(caught.value)


def test_sdxls_small_one_without_any_text_is_still_sdxls(tmp_path):
    levels = tuple(Level(channels=channels) for channels in (320, 640, 1280))
    small = replace(
        UNetConfig.sdxl(), levels=levels, middle=Middle(attention=CrossAttention(heads=20, depth=0)), in_channels=4
    )
    with torch.device("meta"):
        network = ControlNet(ControlNetConfig(unet=small))
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    with pytest.raises(AdapterMismatch, match=r"levels of 320/640/1280 channels instead of 320/640/1280/1280"):
        require_fit(tmp_path, shapes, UNetConfig.sd15())
    assert made_for_model(shapes) == "Stable Diffusion XL"


def test_an_inpainting_model_takes_a_controlnet_of_its_latents_and_not_the_reverse(network, tmp_path):
    save_file(dict(network.state_dict()), tmp_path / "four.safetensors")
    assert read_control(tmp_path / "four.safetensors", pair("M9")[0]).network.config.unet.in_channels == 4
    save_file(dict(controlnet("M9").state_dict()), tmp_path / "nine.safetensors")
    with pytest.raises(AdapterMismatch, match="9 channels of latents instead of 4"):
        read_control(tmp_path / "nine.safetensors", pair("M15")[0])


def test_damaged_and_incomplete_files_are_refused(base, network, tmp_path):
    tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    tensors["controlnet_mid_block.weight"][0, 0] = torch.nan
    save_file(tensors, tmp_path / "nan.safetensors")
    with pytest.raises(DamagedWeights, match=r"controlnet_mid_block.weight: NaN: 1/"):
        read_control(tmp_path / "nan.safetensors", base)
    tensors = dict(network.state_dict())
    del tensors["controlnet_down_blocks.3.bias"]
    save_file(tensors | {"extra.weight": torch.zeros(1)}, tmp_path / "missing.safetensors")
    with pytest.raises(KeyMismatch, match=r"missing \(controlnet_down_blocks.3.bias\); 1 unexpected \(extra.weight\)"):
        read_control(tmp_path / "missing.safetensors", base)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "nan.safetensors").read_bytes()[:5000])
    with pytest.raises(CorruptFile):
        read_control(tmp_path / "cut.safetensors", base)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UnknownCheckpoint, match="a folder without weights"):
        read_control(tmp_path / "nothing", base)


class Payload:
    def __reduce__(self):
        return print, ("run",)


def test_a_pickle_of_more_than_tensors_is_refused_unread(base, tmp_path, capfd):
    torch.save({"a": Payload()}, tmp_path / "bad.pth")
    with pytest.raises(UnsafeFile):
        read_control(tmp_path / "bad.pth", base)
    assert "run" not in capfd.readouterr().out


def test_configs_that_say_something_impossible_are_refused(base, network, tmp_path):
    folder = write_control(network, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for field, value in (
        ("controlnet_conditioning_channel_order", "grb"),
        ("conditioning_embedding_out_channels", "wide"),
        ("conditioning_channels", 2.5),
        ("global_pool_conditions", "yes"),
        ("down_block_types", ["Other"]),
        ("encoder_hid_dim", 4096),
    ):
        (folder / "config.json").write_text(json.dumps({**config, field: value}))
        with pytest.raises(ConfigError, match=field):
            read_control(folder, base)


def test_weights_too_large_for_float16_are_not_written(network, tmp_path):
    loud = ControlNet(network.config)
    loud.load_state_dict(network.state_dict())
    with torch.no_grad():
        loud.controlnet_mid_block.bias[0] = 1e6
    with pytest.raises(InvalidInput, match=r"not finite in torch.float16 in 1 tensors \(controlnet_mid_block.bias\)"):
        write_control(loud, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_control_lora_refuses_another_unet_and_half_a_layer(network, tmp_path):
    file = {"lora_controlnet": torch.zeros(0)}
    for name, tensor in network.state_dict().items():
        foreign = ldm_name(name, M15.config)
        if name.startswith("controlnet_") or tensor.ndim == 1:
            file[foreign] = tensor.clone()
        else:
            file[foreign.removesuffix("weight") + "up"] = torch.zeros(tensor.shape[0], 2)
            file[foreign.removesuffix("weight") + "down"] = torch.zeros(2, *tensor.shape[1:])
    path = tmp_path / "control-lora.safetensors"
    save_file(file, path)
    copied = read_control(path, pair("M15")[0]).network.state_dict()
    assert all(torch.equal(t, copied[k]) for k, t in pair("M15")[0].state_dict().items() if k in copied and t.ndim > 1)
    inpainting = pair("M9")[0]
    first = read_control(path, inpainting).network.state_dict()["conv_in.weight"]
    assert torch.equal(first, inpainting.conv_in.weight[:, :4])
    with pytest.raises(AdapterMismatch, match=r"a Control-LoRA for a model of .* and the model is"):
        read_control(path, pair("MXL")[0])
    del file["time_embed.0.down"]
    save_file(file, path)
    with pytest.raises(KeyMismatch, match=r"time_embedding.linear_1 without its other half"):
        read_control(path, pair("M15")[0])


def test_tensors_of_no_shape_are_refused_and_do_not_crash(base, tmp_path):
    save_file({"lora_controlnet": torch.zeros(0)}, tmp_path / "empty.safetensors")
    with pytest.raises(KeyMismatch, match=r"1 missing \(controlnet_cond_embedding.conv_in.weight\)"):
        read_control(tmp_path / "empty.safetensors", base)
    scalars = {"zero_convs.0.0.weight": torch.tensor(1.0), "input_blocks.0.0.weight": torch.tensor(1.0)}
    save_file(scalars, tmp_path / "scalars.safetensors")
    with pytest.raises(AdapterMismatch, match="levels of no channels instead of 32/64/128/128"):
        read_control(tmp_path / "scalars.safetensors", base)


def test_a_t2i_adapter_for_another_family_is_refused(tmp_path):
    save_file(
        {name: tensor.contiguous() for name, tensor in t2i("full").state_dict().items()}, tmp_path / "t2i.safetensors"
    )
    with pytest.raises(AdapterMismatch, match="like those of Stable Diffusion 1") as caught:
        read_control(tmp_path / "t2i.safetensors", pair("MXL")[0])
    assert caught.value.made_for == "Stable Diffusion 1"


def test_a_lora_is_no_control_network(base, tmp_path):
    tensors = {
        f"lora_unet_mid_block_attentions_0_proj_in.lora_{half}.weight": torch.zeros(2, 2) for half in ("up", "down")
    }
    save_file(tensors, tmp_path / "style.safetensors")
    with pytest.raises(UnknownCheckpoint, match="no control network"):
        read_control(tmp_path / "style.safetensors", base)
