"""Files that lie, break or attack: each is crafted here and refused by a named error that says what it is (H1)."""

import json
import os
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import undertow
from tests.checkpoints.crafted import assert_same_weights, ldm_shapes, ldm_tensors, raw_file, sparse_file
from tests.golden.minis import M15, build
from undertow.checkpoints.files.header import read_header
from undertow.checkpoints.files.pickled import as_safetensors
from undertow.checkpoints.files.weights import open_weights
from undertow.checkpoints.identify.checkpoint import OpenOptions
from undertow.checkpoints.identify.identification import identify
from undertow.checkpoints.read.loading import LoadOptions
from undertow.checkpoints.read.unet_loading import load_unet_from
from undertow.errors import (
    CheckpointError,
    CorruptFile,
    DamagedWeights,
    KeyMismatch,
    MissingComponent,
    UnknownCheckpoint,
    UnsafeFile,
    UnsupportedModel,
)
from undertow.limits import HEADER_BYTES, TENSORS
from undertow.unet.config import CrossAttention, Level, Middle, UNetConfig
from undertow.unet.unet import UNet

SMALL = UNetConfig(
    levels=(Level(channels=8, attention=CrossAttention(heads=2)), Level(channels=16)),
    middle=Middle(attention=CrossAttention(heads=2)),
    context_dim=12,
    norm_groups=4,
)
ONE = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.fixture
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(SMALL).eval()


def load(path: Path, **options: object) -> UNet:
    return load_unet_from(path, LoadOptions(**options), OpenOptions(config=SMALL))


SNIFFED = {
    "zip pickle": (b"PK\x03\x04rest", UnsafeFile, "pickle"),
    "plain pickle": (b"\x80\x02}q\x00.", UnsafeFile, "pickle"),
    "gguf": (b"GGUF\x09\x00\x00\x00" + bytes(32), UnknownCheckpoint, "GGUF"),
    "web page": (b"<!DOCTYPE html><html>log in</html>", CorruptFile, "web page"),
    "web page with spaces": (b"\n  <html>log in</html>", CorruptFile, "web page"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", CorruptFile, "git-lfs"),
    "text": (b"Invalid username or password.", CorruptFile, "Invalid username"),
    "json": (b'{"error": "Access to this model is restricted"}', CorruptFile, "restricted"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(32), UnknownCheckpoint, "PNG"),
    "numpy": (b"\x93NUMPY" + bytes(32), UnknownCheckpoint, "NumPy"),
    "empty": (b"", CorruptFile, "empty"),
    "noise": (bytes(range(200, 256)), CorruptFile, "does not begin"),
}


@pytest.mark.parametrize("name", SNIFFED)
def test_what_is_no_safetensors_file_is_named(name, tmp_path):
    content, error, message = SNIFFED[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        identify(path)
    assert caught.value.path == path


HEADERS = {
    "longer than allowed": ({"length": HEADER_BYTES.usual + 1, "header": b"{}" + bytes(64)}, "16,777,216 are allowed"),
    "longer than the file": ({"length": 5000, "header": ONE}, "cut off"),
    "not json": ({"header": b"{not json}"}, "not JSON"),
    "deep": ({"header": b'{"a":' + b"[" * 100_000}, "not JSON"),
    "twice the same name": (
        {
            "header": b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            "data": bytes(4),
        },
        "'a' occurs twice",
    ),
    "overlap": (
        {"header": {**ONE, "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, "data": bytes(12)},
        "not a whole safetensors file",
    ),
    "hole": (
        {"header": {**ONE, "b": {"dtype": "F32", "shape": [2], "data_offsets": [16, 24]}}, "data": bytes(24)},
        "not a whole safetensors file",
    ),
    "cut off": ({"header": ONE, "data": bytes(4)}, "not a whole safetensors file"),
    "bytes behind the end": ({"header": ONE, "data": bytes(16)}, "not a whole safetensors file"),
    "shape and size differ": (
        {"header": {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, "data": bytes(8)},
        "not a whole safetensors file",
    ),
    "negative shape": (
        {"header": {"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, "data": bytes(8)},
        "impossible header entry",
    ),
    "entry without a type": ({"header": {"a": {"shape": [2]}}, "data": bytes(8)}, "impossible header entry"),
    "metadata that is no text": ({"header": {"__metadata__": {"a": 1}, **ONE}, "data": bytes(8)}, "metadata"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_impossible_headers_are_refused(name, tmp_path):
    made, message = HEADERS[name]
    with pytest.raises(CorruptFile, match=message):
        open_weights(raw_file(tmp_path / "model.safetensors", **made))


def test_too_many_tensors_are_refused(tmp_path):
    empty = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(TENSORS.usual + 1)}
    with pytest.raises(CorruptFile, match="50,001 tensors"):
        read_header(raw_file(tmp_path / "model.safetensors", empty))


def test_an_unknown_type_of_numbers_is_named(tmp_path):
    header = {"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}
    with pytest.raises(UnknownCheckpoint, match="type 'F4'"):
        read_header(raw_file(tmp_path / "model.safetensors", header, bytes(1)))


def test_markers_without_values_are_allowed(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"v_pred": torch.zeros(0), "scalar": torch.tensor(3.0), "w": torch.ones(2)}, path)
    assert open_weights(path).tensors["v_pred"].count == 0
    assert open_weights(path).tensors["scalar"].count == 1


def test_the_name_of_a_file_does_not_matter(unet, tmp_path):
    path = tmp_path / "model.sft"
    save_file(ldm_tensors(unet), path)
    assert_same_weights(load(path), unet)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_counted_and_refused(unet, value, tmp_path):
    tensors = {name: tensor.clone() for name, tensor in ldm_tensors(unet).items()}
    tensors["model.diffusion_model.middle_block.0.in_layers.2.weight"][0, :2, 1, 1] = value
    save_file(tensors, tmp_path / "model.safetensors")
    counted = f"{'NaN' if value != value else 'Inf'}: 2/2304"
    with pytest.raises(DamagedWeights, match=counted) as caught:
        load(tmp_path / "model.safetensors")
    assert caught.value.tensors == ("model.diffusion_model.middle_block.0.in_layers.2.weight",)
    assert load(tmp_path / "model.safetensors", validate=False).mid_block.resnets[0].conv1.weight.isfinite().all() == 0


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_every_type_of_floats_becomes_one_that_computes(unet, dtype, tmp_path):
    stored = {name: tensor.to(dtype) for name, tensor in ldm_tensors(unet).items()}
    save_file(stored, tmp_path / "model.safetensors")
    expected = {torch.float64: torch.float32, torch.float8_e4m3fn: torch.float16, torch.float8_e5m2: torch.float16}
    loaded = load(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {expected.get(dtype, dtype)}
    name = "model.diffusion_model.input_blocks.0.0.weight"
    assert torch.equal(loaded.conv_in.weight.to(torch.float64), stored[name].to(torch.float64))


def test_mixed_types_become_the_most_common_one(unet, tmp_path):
    tensors = {name: tensor if tensor.ndim == 1 else tensor.half() for name, tensor in ldm_tensors(unet).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in load(tmp_path / "model.safetensors").parameters()} == {torch.float16}


@pytest.mark.parametrize(
    "scale",
    ["scaled_fp8", "middle_block.0.in_layers.2.scale_weight", "middle_block.0.in_layers.2.weight_scale",
     "middle_block.0.in_layers.2.comfy_quant", "middle_block.0.in_layers.2.weight.absmax",
     "middle_block.0.in_layers.2.SCB"],
)  # fmt: skip
def test_scaled_weights_are_refused(unet, scale, tmp_path):
    save_file(ldm_tensors(unet) | {f"model.diffusion_model.{scale}": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModel, match="quantized weights with scales"):
        load(tmp_path / "model.safetensors")


def test_missing_tensors_are_named_and_never_made_up(unet, tmp_path):
    tensors = ldm_tensors(unet)
    del tensors["model.diffusion_model.out.2.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(KeyMismatch) as caught:
        load(tmp_path / "model.safetensors")
    assert caught.value.missing == ("conv_out.bias",)


def test_tensors_without_a_rule_are_named(unet, tmp_path):
    extra = {"model.diffusion_model.input_blocks.1.9.weight": torch.ones(1)}
    save_file(ldm_tensors(unet) | extra, tmp_path / "model.safetensors")
    with pytest.raises(KeyMismatch) as caught:
        load(tmp_path / "model.safetensors")
    assert caught.value.unexpected == tuple(extra)


def test_tensors_of_another_shape_are_named(unet, tmp_path):
    tensors = ldm_tensors(unet) | {"model.diffusion_model.out.2.bias": torch.ones(7)}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(KeyMismatch) as caught:
        load(tmp_path / "model.safetensors")
    assert caught.value.reshaped == ("conv_out.bias [7] instead of [4]",)


def test_a_file_with_a_vae_alone_has_no_unet(tmp_path):
    names = ("encoder.conv_in.weight", "decoder.conv_in.weight", "decoder.mid.block_1.norm1.weight")
    save_file({f"first_stage_model.{name}": torch.ones(4, 4, 3, 3) for name in names}, tmp_path / "vae.safetensors")
    with pytest.raises((MissingComponent, UnknownCheckpoint), match=r"U-Net|VAE"):
        undertow.load_unet(tmp_path / "vae.safetensors")


def test_averaged_weights_only_on_request(unet, tmp_path):
    """Their names lose all dots; the plain weights are the default."""
    plain = ldm_tensors(unet)
    averaged = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): tensor + 1 for name, tensor in plain.items()
    }
    save_file(plain | averaged | {"model_ema.decay": torch.tensor(0.99)}, tmp_path / "model.safetensors")
    assert_same_weights(load(tmp_path / "model.safetensors"), unet)
    loaded = load_unet_from(tmp_path / "model.safetensors", opening=OpenOptions(config=SMALL, ema=True))
    assert torch.equal(loaded.conv_in.weight, unet.conv_in.weight + 1)
    assert torch.equal(loaded.mid_block.resnets[1].conv2.bias, unet.mid_block.resnets[1].conv2.bias + 1)


def test_averaged_weights_that_are_not_there_are_missed_by_name(unet, tmp_path):
    save_file(ldm_tensors(unet), tmp_path / "model.safetensors")
    with pytest.raises(MissingComponent, match="averaged"):
        load_unet_from(tmp_path / "model.safetensors", opening=OpenOptions(config=SMALL, ema=True))


def test_a_file_that_changes_while_it_is_read_is_noticed(unet, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(ldm_tensors(unet), path)
    weights = open_weights(path)
    names = iter(weights.each(list(weights.tensors)))
    next(names)
    os.utime(path, ns=(1, 1))
    with pytest.raises(CorruptFile, match="changed while it was read"):
        list(names)


def test_metadata_is_only_text(unet, tmp_path):
    """Untrusted strings neither run nor break anything."""
    metadata = {"ss_tag_frequency": json.dumps({"x": "[bold]" * 1000}), "modelspec.title": "__import__('os')"}
    save_file(ldm_tensors(unet), tmp_path / "model.safetensors", metadata=metadata)
    assert_same_weights(load(tmp_path / "model.safetensors"), unet)


def test_full_size_files_are_refused_for_one_tensor_too_few(tmp_path):
    shapes = ldm_shapes(UNetConfig.sd15())
    del shapes["model.diffusion_model.out.2.bias"]
    with pytest.raises(KeyMismatch, match=r"1 missing \(conv_out.bias\)"):
        undertow.load_unet(sparse_file(tmp_path / "model.safetensors", shapes))


class Attack:
    """Pickles as a call into the operating system."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
def test_a_malicious_pickle_runs_nothing(form, tmp_path, request):
    """Neither refused by default, nor when reading pickles is allowed."""
    if form == "zip":
        request.getfixturevalue("new_processes")
    mark, path = tmp_path / "executed", tmp_path / "model.ckpt"
    content = {"state_dict": {"w": torch.ones(2)}, "attack": Attack(mark)}
    if form == "plain":
        path.write_bytes(pickle.dumps(Attack(mark), protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UnsafeFile, match="this is a pickle"):
        undertow.load_unet(path)
    with pytest.raises(UnsafeFile, match=r"posix\.mkdir"):
        load_unet_from(path, opening=OpenOptions(allow_pickle=True))
    assert not mark.exists()
    pickle.loads(pickle.dumps(Attack(mark)))
    assert mark.exists(), "the attack must work where nobody prevents it"


@pytest.fixture
def trainer_class(monkeypatch):
    """pytorch_lightning's ModelCheckpoint, which official SD1 files name, without that package."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    for package in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    monkeypatch.setitem(sys.modules, name, module)
    return module.ModelCheckpoint


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_an_honest_pickle_loads_on_request(form, trainer_class, tmp_path, request):
    """As the official files are: nested, with the trainer's class and counters."""
    if form == "zip":
        request.getfixturevalue("new_processes")
    unet = build(M15)
    state = trainer_class()
    state.best = 0.5
    content = {
        "state_dict": {"state_dict": ldm_tensors(unet)},
        "global_step": 470_000,
        "callbacks": {trainer_class: state},
    }
    path = tmp_path / "model.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UnsafeFile, match="--allow-pickle"):
        load_unet_from(path, opening=OpenOptions(config=M15.config))
    if form == "zip":
        loaded = load_unet_from(path, opening=OpenOptions(config=M15.config, allow_pickle=True))
        assert_same_weights(loaded, unet)
        return
    with as_safetensors(path) as converted:
        assert open_weights(converted).metadata["global_step"] == "470000"
        assert_same_weights(load_unet_from(converted, opening=OpenOptions(config=M15.config)), unet)
    assert not converted.exists()


def test_only_that_one_class_gets_a_stand_in(trainer_class, monkeypatch, tmp_path):
    module = sys.modules[trainer_class.__module__]
    module.Other = type("Other", (), {"__module__": trainer_class.__module__})
    torch.save({"w": torch.ones(2), "other": module.Other()}, tmp_path / "model.ckpt")
    with pytest.raises(UnsafeFile, match=r"model_checkpoint\.Other"), as_safetensors(tmp_path / "model.ckpt"):
        pass


def test_an_error_about_a_converted_pickle_names_the_users_file(tmp_path):
    """Not the temporary file that its tensors are read from."""
    path = tmp_path / "mine.ckpt"
    torch.save({"state_dict": {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3)}}, path)
    with pytest.raises(CheckpointError) as caught:
        load_unet_from(path, opening=OpenOptions(allow_pickle=True))
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).count(str(tmp_path)) == 1
