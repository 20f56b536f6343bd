"""A diffusers model folder, written and read strictly."""

import json
import resource
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tests.golden.minis import MINIS, MPIX, MUNC, TIMESTEPS, build, build_twin, conditioning_for, latents_for, run_twin
from undertow.checkpoints.files.atomic import write_text
from undertow.checkpoints.files.model_folder import CONFIG, WEIGHTS
from undertow.checkpoints.read.unet_loading import load_unet_folder
from undertow.checkpoints.write.unet_folder import save_unet
from undertow.errors import CheckpointError, ConfigError, CorruptFile, KeyMismatch, UnknownCheckpoint
from undertow.unet.config import ClassLabels, UNetConfig
from undertow.unet.unet import UNet

# Built once: MUNC has 1.4 MB of weights, and null labels are the one thing of ours in a config.json.
UNET = build(MUNC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_unet(UNET, tmp_path / "model")


def assert_same_weights(a: UNet, b: UNet) -> None:
    assert a.state_dict().keys() == b.state_dict().keys()
    theirs = b.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items())


@pytest.mark.parametrize("name", ["MXL", "MPIX", "MUNC"])
def test_a_round_trip_is_exact(name, tmp_path):
    unet = build(MINIS[name])
    loaded = load_unet_folder(save_unet(unet, tmp_path))
    assert loaded.config == unet.config
    assert_same_weights(loaded, unet)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    latents, given = latents_for(MINIS[name]), conditioning_for(MINIS[name])
    assert torch.equal(loaded(latents, TIMESTEPS, given), unet(latents, TIMESTEPS, given))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_types_are_cast_on_writing_and_on_reading(dtype, tmp_path):
    written = load_unet_folder(save_unet(UNET, tmp_path, dtype=dtype))
    assert written.dtype == dtype, "None keeps the file's type"
    assert UNET.dtype == torch.float32, "writing leaves the network alone"
    cast = build(MUNC).to(dtype)
    assert_same_weights(written, cast)
    assert_same_weights(load_unet_folder(tmp_path, dtype=torch.float32), cast.float())


def test_channels_last_and_slots_do_not_reach_the_file(tmp_path):
    unet = build(MUNC).to(memory_format=torch.channels_last)
    unet.conv_in.allocate_slots(2, 4)
    assert_same_weights(load_unet_folder(save_unet(unet, tmp_path)), UNET)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ["MSSD", "MRF", "MUNC"])
@torch.no_grad()
def test_diffusers_loads_what_we_save(name, tmp_path):
    mini = MINIS[name]
    unet = build(mini)
    save_unet(unet, tmp_path)
    kind = UNet2DModel if mini.config.context_dim is None else UNet2DConditionModel
    loaded: Any = kind.from_pretrained(tmp_path, output_loading_info=True, low_cpu_mem_usage=False)
    theirs, info = loaded
    assert not any(info.values())
    latents, given = latents_for(mini), conditioning_for(mini)
    reference = run_twin(theirs.eval(), latents, TIMESTEPS, given)
    assert (unet(latents, TIMESTEPS, given) - reference).abs().max() <= 1e-5 * max(1.0, float(reference.abs().max()))


@pytest.mark.parametrize("name", ["M21", "MUNC"])
def test_we_load_what_diffusers_saves(name, tmp_path):
    unet = build(MINIS[name])
    build_twin(MINIS[name], unet).save_pretrained(tmp_path)
    loaded = load_unet_folder(tmp_path)
    assert loaded.config == unet.config
    assert_same_weights(loaded, unet)


def test_the_null_class_survives(tmp_path):
    loaded = load_unet_folder(save_unet(build(MPIX), tmp_path))
    assert loaded.config.added == ClassLabels(count=10, null=True)


def test_a_pipelines_unet_folder_is_found(tmp_path):
    save_unet(UNET, tmp_path / "unet")
    (tmp_path / "model_index.json").write_text("{}")
    assert_same_weights(load_unet_folder(tmp_path), UNET)


def test_missing_places_say_what_belongs_there(tmp_path, folder):
    with pytest.raises(UnknownCheckpoint, match="no such folder"):
        load_unet_folder(tmp_path / "nowhere")
    with pytest.raises(UnknownCheckpoint, match=f"{CONFIG}.*no such file"):
        load_unet_folder(tmp_path)
    (folder / WEIGHTS).unlink()
    with pytest.raises(UnknownCheckpoint, match=r"no weights.*safetensors") as caught:
        load_unet_folder(folder)
    assert caught.value.path == folder


@pytest.mark.parametrize("kept", [0, 5, 2000, -1])
def test_a_truncated_file_is_refused(folder, kept):
    """Nothing, the length of the header, part of the header, all but one byte."""
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:kept])
    with pytest.raises(CorruptFile, match="copy or download it again") as caught:
        load_unet_folder(folder)
    assert caught.value.path == folder / WEIGHTS


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1, 2]", "a JSON list, not an object"),
        (b"null", "not an object"),
    ],
)
def test_a_damaged_config_is_refused(folder, content, says):
    (folder / CONFIG).write_bytes(content)
    with pytest.raises(CorruptFile, match=says) as caught:
        load_unet_folder(folder)
    assert caught.value.path == folder / CONFIG


def test_a_foreign_config_is_refused(folder):
    (folder / CONFIG).write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(ConfigError, match="AutoencoderKL"):
        load_unet_folder(folder)


def test_foreign_tensors_are_listed_by_name(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors["model.diffusion_model.out.2.bias"] = tensors.pop("conv_out.bias")
    tensors["conv_in.weight"] = torch.zeros(32, 4, 3, 3)
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(KeyMismatch) as caught:
        load_unet_folder(folder)
    assert caught.value.missing == ("conv_out.bias",)
    assert caught.value.unexpected == ("model.diffusion_model.out.2.bias",)
    assert caught.value.reshaped == ("conv_in.weight [32, 4, 3, 3] instead of [32, 1, 3, 3]",)
    for part in ("1 missing (conv_out.bias)", "1 unexpected (model.diffusion_model.out.2.bias)", "1 of another shape"):
        assert part in str(caught.value)


def test_every_refusal_is_a_checkpoint_error(folder):
    (folder / WEIGHTS).write_bytes(b"")
    with pytest.raises(CheckpointError):
        load_unet_folder(folder)


@contextmanager
def files_limited_to(size: int) -> Generator[None]:
    """As on a full disk, the operating system refuses to write more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [100_000, 100], ids=["in the tensors", "at once"])
def test_a_failing_write_leaves_the_old_files_whole(folder, limit):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = build(MUNC, seed=1)
    with files_limited_to(limit), pytest.raises((OSError, SafetensorError)):
        save_unet(other, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, "and no draft is left"
    assert_same_weights(load_unet_folder(folder), UNET)


def test_a_failing_config_leaves_the_old_one_whole(folder):
    """safetensors removes its own half-written file; this one is ours to remove."""
    before = (folder / CONFIG).read_text()
    with files_limited_to(100), pytest.raises(OSError, match="File too large"):
        write_text("{}" * 1000, folder / CONFIG)
    assert (folder / CONFIG).read_text() == before
    assert {path.name for path in folder.iterdir()} == {CONFIG, WEIGHTS}


def test_a_failing_first_write_leaves_nothing(tmp_path):
    with files_limited_to(100_000), pytest.raises((OSError, SafetensorError)):
        save_unet(UNET, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_what_cannot_be_described_is_refused_before_anything_is_written(tmp_path):
    mini = MUNC.config.levels
    config = UNetConfig(levels=mini, middle=type(MUNC.config.middle)(resnets=1), norm_groups=8)
    with pytest.raises(ConfigError):
        save_unet(UNet(config), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_saving_over_another_model_replaces_it(folder):
    save_unet(build(MINIS["MPIX"]), folder)
    assert load_unet_folder(folder).config == MPIX.config
    shutil.rmtree(folder)


def test_saved_files_can_be_read_by_whoever_may_read_the_folder(tmp_path):
    folder = save_unet(UNet(UNetConfig.cifar10()), tmp_path / "model")
    folder.chmod(0o755)
    save_unet(UNet(UNetConfig.cifar10()), folder)

    assert {oct(file.stat().st_mode & 0o777) for file in folder.iterdir()} == {"0o644"}
