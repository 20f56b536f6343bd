"""Files that do not fit, are damaged, or need what undertow has not: refused by name before a value is used."""

import os

import pytest
import torch
from torch import Tensor

from tests.adapters.image_prompt.files import (
    FEATURES,
    authors,
    flat,
    matrix,
    normal,
    projection,
    widths_in_file_order,
    write,
)
from tests.golden.minis import pair
from undertow.adapters.image_prompt.fitting import require_fit
from undertow.adapters.image_prompt.image_prompt_file import read_image_prompt
from undertow.adapters.image_prompt.names import read_image_prompt_names
from undertow.checkpoints.files.header import TensorInfo
from undertow.checkpoints.files.weights import open_weights
from undertow.errors import (
    AdapterMismatch,
    CheckpointError,
    CorruptFile,
    DamagedWeights,
    InvalidInput,
    KeyMismatch,
    UnknownCheckpoint,
    UnsafeFile,
    UnsupportedModel,
)
from undertow.unet.config import UNetConfig
from undertow.unet.presets import PRESETS

CONTEXT = 24


@pytest.fixture
def unet():
    return pair("M15")[0]


def good(name: str = "M15", variant: str = "base") -> dict[str, Tensor]:
    return flat(authors(pair(name)[0].config, variant))


def without(tensors: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


FACE = "InsightFace's embedding of a face"
STRANGERS = {
    "FaceID": {
        **{f"image_proj.{name}": one for name, one in projection("full", CONTEXT).items() if "proj.3" not in name},
        "image_proj.norm.weight": torch.ones(CONTEXT),
        "image_proj.norm.bias": torch.ones(CONTEXT),
        "ip_adapter.0.to_q_lora.down.weight": matrix(4, 32, "q"),
        "ip_adapter.1.to_k_ip.weight": matrix(32, CONTEXT, "k"),
    },
    "FaceID Plus": {
        "image_proj.perceiver_resampler.proj_in.weight": matrix(8, 8, "p"),
        "ip_adapter.0.to_q_lora.down.weight": matrix(4, 32, "q"),
    },
    "FaceID Portrait": {
        "image_proj.proj.0.weight": matrix(64, 32, "0"),
        "image_proj.proj.2.weight": matrix(64, 64, "2"),
        "image_proj.norm.weight": torch.ones(CONTEXT),
        "ip_adapter.1.to_k_ip.weight": matrix(32, CONTEXT, "k"),
    },
    "FaceID Portrait or a relative": {  # a FaceID as diffusers saves it
        "encoder_hid_proj.image_projection_layers.0.ff.net.0.proj.weight": matrix(64, 32, "0"),
        "encoder_hid_proj.image_projection_layers.0.ff.net.2.weight": matrix(4 * CONTEXT, 64, "2"),
        "encoder_hid_proj.image_projection_layers.0.norm.weight": torch.ones(CONTEXT),
    },
    "InstantID": {
        "image_proj.latents": normal(1, 16, 1280, seed="l"),
        "image_proj.proj_in.weight": torch.zeros(1280, 512),
        "image_proj.proj_out.weight": torch.zeros(2048, 1280),
        "ip_adapter.1.to_k_ip.weight": torch.zeros(640, 2048),
    },
    "PhotoMaker": {"id_encoder.fuse_module.layer_norm.weight": torch.ones(4)},
    "PuLID": {"id_adapter_attn_layers.0.id_to_k.weight": torch.zeros(4, 4)},
    "IP-Adapter of Kolors": {
        "image_proj.latents": torch.zeros(1, 16, 2048),
        "image_proj.proj_in.weight": torch.zeros(2048, 1024),
        "ip_adapter.1.to_k_ip.weight": torch.zeros(640, 2048),
    },
    "IP-Adapter of FLUX": {
        "double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight": torch.zeros(4, 4),
        "ip_adapter_proj_model.proj.weight": torch.zeros(4, 4),
    },
    "IP-Adapter of Stable Diffusion 3": {"ip_adapter.0.norm_ip_k.weight": torch.zeros(4)},
    "a LoRA": {"lora_unet_x.lora_down.weight": torch.zeros(4, 4)},
    "CLIP vision encoder": {"vision_model.embeddings.patch_embedding.weight": torch.zeros(4, 3, 2, 2)},
}


@pytest.mark.parametrize("what", STRANGERS)
def test_relatives_and_strangers_are_refused_by_name(what, unet, tmp_path):
    path = write(tmp_path / "file.safetensors", STRANGERS[what])
    with pytest.raises(UnsupportedModel, match=what) as error:
        read_image_prompt(path, unet)
    if "FaceID" in what or what in ("InstantID", "PuLID"):
        assert FACE in str(error.value)


def test_what_is_nothing_known_says_what_to_give(unet, tmp_path):
    path = write(tmp_path / "file.safetensors", {"who": torch.zeros(2)})
    with pytest.raises(UnknownCheckpoint, match=r"none of its 1 tensors .* \('who'\); give an IP-Adapter"):
        read_image_prompt(path, unet)
    with pytest.raises(UnknownCheckpoint, match="no such file"):
        read_image_prompt(tmp_path / "none.safetensors", unet)


@pytest.mark.parametrize(
    ("made", "model", "title"),
    [
        ("sdxl", "sd15", "Stable Diffusion XL"),
        ("sd15", "sdxl", r"Stable Diffusion 1\.x"),
        ("sd21", "sd15", r"Stable Diffusion 2\.x"),
        ("sd15", "sd21", r"Stable Diffusion 1\.x"),
        ("sdxl", "ssd-1b", "Stable Diffusion XL"),
        ("sdxl-refiner", "sdxl", "Stable Diffusion XL refiner"),
    ],
)
def test_another_family_is_named(made, model, title, tmp_path):
    """From names and shapes alone: the tensors here have no values."""
    config = PRESETS[made]()
    names = read_image_prompt_names(tmp_path, _shapes_only(config))
    require_fit(tmp_path, names, config)
    with pytest.raises(AdapterMismatch, match=f"made for {title} ") as error:
        require_fit(tmp_path, names, PRESETS[model]())
    assert error.value.made_for is not None


def _shapes_only(config: UNetConfig) -> dict[str, TensorInfo]:
    shapes = {
        f"ip_adapter.{2 * place + 1}.{leaf}.weight": (width, config.context_dim)
        for place, width in enumerate(widths_in_file_order(config))
        for leaf in ("to_k_ip", "to_v_ip")
    }
    shapes["image_proj.proj.weight"] = (4 * config.context_dim, 1024)
    return {name: TensorInfo(kind="F16", shape=shape) for name, shape in shapes.items()}


def test_missing_surplus_and_reshaped_matrices_are_listed(unet, tmp_path):
    """The values are not numbers: whoever looks at them first says something else."""
    tensors = {name: tensor * float("nan") for name, tensor in good().items()}
    path = write(tmp_path / "less.safetensors", without(tensors, "ip_adapter.5.to_v_ip.weight"))
    with pytest.raises(AdapterMismatch, match=r"1 missing \(ip_adapter\.5\.to_v_ip\)") as error:
        read_image_prompt(path, unet)
    assert error.value.unmatched == ("ip_adapter.5.to_v_ip",)
    path = write(tmp_path / "more.safetensors", {**tensors, "ip_adapter.99.to_k_ip.weight": torch.zeros(32, CONTEXT)})
    with pytest.raises(AdapterMismatch, match=r"1 of no cross-attention here \(ip_adapter\.99\.to_k_ip\)"):
        read_image_prompt(path, unet)
    path = write(tmp_path / "even.safetensors", {**tensors, "ip_adapter.2.to_k_ip.weight": torch.zeros(32, CONTEXT)})
    with pytest.raises(AdapterMismatch, match=r"ip_adapter\.2\.to_k_ip"):
        read_image_prompt(path, unet)
    path = write(tmp_path / "wide.safetensors", {**tensors, "ip_adapter.1.to_k_ip.weight": torch.zeros(64, CONTEXT)})
    with pytest.raises(AdapterMismatch, match=r"1 of another width .*\[64, 24\] instead of \[32, 24\]") as error:
        read_image_prompt(path, unet)
    assert error.value.reshaped


def test_a_model_without_text_is_refused(tmp_path):
    with pytest.raises(AdapterMismatch, match="this model has no cross-attention"):
        read_image_prompt(write(tmp_path / "ip.safetensors", good()), pair("MPIX")[0])


def test_projections_that_are_not_whole(unet, tmp_path):
    plus = good(variant="plus")
    path = write(tmp_path / "a.safetensors", without(plus, "image_proj.layers.1.0.to_kv.weight"))
    with pytest.raises(KeyMismatch, match=r"1 missing \(image_proj\.layers\.1\.0\.to_kv\.weight"):
        read_image_prompt(path, unet)
    path = write(tmp_path / "b.safetensors", {**plus, "image_proj.pos_emb.weight": torch.zeros(4, 4)})
    with pytest.raises(KeyMismatch, match=r"1 unexpected \(image_proj\.pos_emb"):
        read_image_prompt(path, unet)
    path = write(tmp_path / "c.safetensors", {**good(), "image_proj.proj.bias": torch.zeros(5)})
    with pytest.raises(KeyMismatch, match=r"image_proj\.proj\.bias \[5\] instead of \[96\]"):
        read_image_prompt(path, unet)
    path = write(tmp_path / "d.safetensors", without(good(), "image_proj.norm.weight"))
    with pytest.raises(UnknownCheckpoint, match=r"its image_proj is not whole"):
        read_image_prompt(path, unet)
    path = write(tmp_path / "e.safetensors", {**good(), "image_proj.norm.weight": torch.zeros(0)})
    with pytest.raises(UnknownCheckpoint, match=r"its image_proj is not whole"):
        read_image_prompt(path, unet)
    path = write(tmp_path / "f.safetensors", {**good(), "someone.else": torch.zeros(2)})
    with pytest.raises(KeyMismatch, match=r"unexpected \(someone\.else\)"):
        read_image_prompt(path, unet)
    pairs = {name: tensor for name, tensor in good().items() if name.startswith("ip_adapter.")}
    odd = {**pairs, "image_proj.who.weight": torch.zeros(3, 3)}
    with pytest.raises(UnknownCheckpoint, match=r"a projection of no known kind \(image_proj\.who\.weight\)"):
        read_image_prompt(write(tmp_path / "g.safetensors", odd), unet)


def test_tokens_of_another_width_than_the_text(unet, tmp_path):
    other = flat({"image_proj": projection("base", 32), "ip_adapter": authors(unet.config)["ip_adapter"]})
    with pytest.raises(AdapterMismatch, match="its tokens are 32 wide, and this model reads text 24 wide"):
        read_image_prompt(write(tmp_path / "ip.safetensors", other), unet)


def test_half_an_adapter(unet, tmp_path):
    for kept, lost in (("image_proj", "ip_adapter"), ("ip_adapter", "image_proj")):
        half = {name: tensor for name, tensor in good().items() if name.startswith(kept)}
        with pytest.raises(UnknownCheckpoint, match=f"half of an IP-Adapter: {kept} without {lost}"):
            read_image_prompt(write(tmp_path / f"{kept}.safetensors", half), unet)


@pytest.mark.parametrize("name", ["image_proj.proj.weight", "ip_adapter.31.to_v_ip.weight"])
def test_values_that_are_not_numbers(name, unet, tmp_path):
    tensors = good()
    tensors[name][3, 2] = float("nan")
    with pytest.raises(DamagedWeights, match=name.replace(".", r"\.")) as error:
        read_image_prompt(write(tmp_path / "ip.safetensors", tensors), unet)
    assert error.value.tensors == (name,)


class Attack:
    """Unpickling it would make a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_pickle_that_would_run_code_is_refused(unet, tmp_path):
    torch.save({**authors(unet.config), "extra": Attack(tmp_path / "harm")}, tmp_path / "ip.bin")
    with pytest.raises(UnsafeFile, match="holds more than tensors"):
        read_image_prompt(tmp_path / "ip.bin", unet)
    assert not (tmp_path / "harm").exists()


def test_truncated_files_and_folders_without_one(unet, tmp_path):
    path = write(tmp_path / "ip.safetensors", good())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptFile):
        read_image_prompt(path, unet)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnknownCheckpoint, match="a folder without weights"):
        read_image_prompt(tmp_path / "empty", unet)


def test_an_index_of_an_adapter_that_is_not_there(unet, tmp_path):
    path = write(tmp_path / "ip.safetensors", good())
    assert read_image_prompt(path, unet, index=0).feature_dim == FEATURES
    with pytest.raises(InvalidInput, match=r"index is 1, expected one of 0"):
        read_image_prompt(path, unet, index=1)


def test_two_adapters_in_a_file_need_an_index(unet, tmp_path):
    pairs = {
        f"{site}.processor.{leaf}.{index}.weight": matrix(width, CONTEXT, site)
        for site, width in unet.config.cross_attentions().items()
        for leaf in ("to_k_ip", "to_v_ip")
        for index in (0, 1)
    }
    path = write(tmp_path / "ip.safetensors", pairs)
    with pytest.raises(InvalidInput, match="index is None, expected one of 0, 1: the adapters that"):
        read_image_prompt(path, unet)
    with pytest.raises(UnknownCheckpoint, match="half of an IP-Adapter"):
        read_image_prompt(path, unet, index=1)
    less = without(pairs, next(name for name in pairs if name.endswith("to_v_ip.1.weight")))
    with pytest.raises(CheckpointError):
        read_image_prompt(write(tmp_path / "less.safetensors", less), unet, index=1)


def test_quantized_tensors_are_refused(unet, tmp_path):
    tensors = {**good(), "ip_adapter.1.to_k_ip.scale_weight": torch.ones(1)}
    path = write(tmp_path / "ip.safetensors", tensors)
    assert open_weights(path)
    with pytest.raises(UnsupportedModel, match="quantized weights"):
        read_image_prompt(path, unet)
