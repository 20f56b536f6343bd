"""Converting: every weight survives every way around, other tools read what is written, a failure leaves nothing."""

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

import undertow
from tests.checkpoints.crafted import assert_same_weights, ldm_tensors
from tests.checkpoints.pipelines import MINIS, save_pipeline, text_encoders, vae
from tests.few import few
from tests.golden.minis import MPIX, build
from undertow.checkpoints.files import atomic
from undertow.checkpoints.identify.checkpoint import OpenOptions
from undertow.checkpoints.identify.identification import identify
from undertow.checkpoints.read.model_loading import load_model
from undertow.checkpoints.read.unet_loading import load_unet_from
from undertow.checkpoints.write.convert import convert
from undertow.checkpoints.write.unet_folder import save_unet
from undertow.cli import main
from undertow.diffusion.schedules import NoiseSchedule
from undertow.errors import ConfigError, CorruptFile, InvalidInput, UnsupportedModel
from undertow.quantization import Quantization
from undertow.unet.config import UNetConfig
from undertow.vocabulary import Vocabulary

FAMILIES = list(MINIS)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {family: save_pipeline(root / family, family) for family in FAMILIES}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a pipeline folder, text encoders without their optional prefix."""
    found = {}
    for file in sorted(folder.rglob("*.safetensors")):
        for name, tensor in load_file(file).items():
            found[f"{file.parent.name}/{name.removeprefix('text_model.')}"] = tensor
    return found


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert not [name for name in found if not torch.equal(found[name], expected[name])]


@pytest.mark.parametrize("family", few(FAMILIES, 2))
def test_folder_to_file_to_folder_is_exact(family, pipelines, tmp_path):
    file = convert(pipelines[family], tmp_path / "model.safetensors", "ldm")
    back = convert(file, tmp_path / "back", "diffusers")
    assert_same(weights(back), weights(pipelines[family]))
    again = convert(back, tmp_path / "again.safetensors", "ldm")
    assert_same(load_file(again), load_file(file))
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("family", few(["sdxl", "sd1", "sd2"], 1))
def test_diffusers_reads_what_is_written(family, pipelines, tmp_path):
    file = convert(pipelines[family], tmp_path / "model.safetensors", "ldm")
    folder = convert(file, tmp_path / "folder", "diffusers")
    unet = build(MINIS[family])
    assert_same_weights(UNet2DConditionModel.from_pretrained(folder / "unet"), unet)
    single = UNet2DConditionModel.from_single_file(
        str(file), config=str(pipelines[family]), subfolder="unet", local_files_only=True
    )
    assert_same_weights(single, unet)
    expected = vae(0.13025 if family == "sdxl" else 0.18215)
    read = AutoencoderKL.from_pretrained(folder / "vae")
    assert_same_weights(read, expected)
    assert read.config.scaling_factor == expected.config.scaling_factor
    single_vae = AutoencoderKL.from_single_file(
        str(file), config=str(pipelines[family]), subfolder="vae", local_files_only=True
    )
    assert_same_weights(single_vae, expected)
    assert DDPMScheduler.from_pretrained(folder / "scheduler").config.beta_schedule == "scaled_linear"
    half = convert(pipelines[family], tmp_path / "half", "diffusers", dtype=torch.float16)
    assert CLIPTextModel.from_pretrained(half / "text_encoder").dtype == torch.float32, "as diffusers loads all others"
    for name, network in text_encoders(family).items():
        kind = CLIPTextModelWithProjection if name == "text_encoder_2" else CLIPTextModel
        assert_same_weights(kind.from_pretrained(folder / name), network)


@pytest.mark.parametrize("family", few(FAMILIES, 2))
def test_a_written_file_loads_as_the_same_model(family, pipelines, tmp_path):
    file = convert(pipelines[family], tmp_path / "model.safetensors", "ldm")
    ours, theirs = load_model(file), load_model(pipelines[family])
    assert ours.family == theirs.family == family
    assert_same_weights(ours.require_unet(), theirs.require_unet())
    assert_same_weights(ours.require_vae(), theirs.require_vae())
    assert ours.latent_space == theirs.latent_space
    assert ours.schedule == theirs.schedule
    for one, other in zip(ours.require_text().encoders, theirs.require_text().encoders, strict=True):
        assert one.config == other.config
        assert_same_weights(one, other)


def test_what_shapes_do_not_tell_survives(tmp_path):
    folder = save_pipeline(tmp_path / "in", "sdxl", prediction_type="v_prediction", rescale_betas_zero_snr=True)
    file = convert(folder, tmp_path / "model.safetensors", "ldm")
    assert {"v_pred", "ztsnr"} <= load_file(file).keys(), "other tools look for the markers"
    found = identify(file)
    assert (found.prediction.value, found.prediction.confidence) == ("v", "certain")
    assert found.zero_terminal_snr.value is True
    scheduler = json.loads(
        (convert(file, tmp_path / "out", "diffusers") / "scheduler/scheduler_config.json").read_text()
    )
    assert scheduler["prediction_type"] == "v_prediction"
    assert scheduler["rescale_betas_zero_snr"] is True


SCHEDULES = {
    "longer": ({"beta_end": 0.02}, NoiseSchedule.scaled_linear(beta_end=0.02)),
    "pixels'": ({"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}, NoiseSchedule.linear()),
    "cosine": ({"beta_schedule": "squaredcos_cap_v2"}, NoiseSchedule.cosine()),
    "rescaled": (
        {"beta_end": 0.02, "rescale_betas_zero_snr": True},
        NoiseSchedule.scaled_linear(beta_end=0.02).rescale_zero_terminal_snr(),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_another_noise_schedule_than_stable_diffusion_s_survives(name, tmp_path):
    """In a single file as LDM's own table, which other tools read, and from there exactly into a folder."""
    said, expected = SCHEDULES[name]
    folder = save_pipeline(tmp_path / "in", "sd1", **said)
    rules = Quantization(rules=(("*", "int8-weights"),))
    for way, quantization in (("plain", None), ("quantized", rules)):
        file = convert(folder, tmp_path / f"{way}.safetensors", "ldm", quantization=quantization)
        table = load_file(file)["alphas_cumprod"]
        torch.testing.assert_close(table, replace(expected, zero_terminal_snr=False).alphas_cumprod.float())
        assert load_model(file).schedule == expected
        back = convert(file, tmp_path / way, "diffusers")
        assert load_model(back).schedule == expected
        written = json.loads((back / "scheduler/scheduler_config.json").read_text())
        assert written["steps_offset"] == 1, "as LDM's samplers count"


def test_levels_that_a_file_cannot_say_are_refused(tmp_path):
    folder = save_pipeline(tmp_path / "in", "sd1", num_train_timesteps=500)
    with pytest.raises(ConfigError, match=r"schedule.steps = 500: must be 1000 in a single file: save a folder"):
        convert(folder, tmp_path / "model.safetensors", "ldm")
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(flow))
    with pytest.raises(ConfigError, match="'velocity': has no place in a single file"):
        convert(folder, tmp_path / "model.safetensors", "ldm")


def test_how_a_folder_is_drawn_survives(tmp_path):
    folder = save_pipeline(tmp_path / "in", "sd1")
    place = folder / "scheduler/scheduler_config.json"
    before = json.loads(place.read_text()) | {"_class_name": "LCMScheduler", "original_inference_steps": 20}
    place.write_text(json.dumps(before))
    words = {one.name: ["owl"] for one in fields(Vocabulary)} | {"together": 4}
    (folder / "words.json").write_text(json.dumps(words))
    again = convert(folder, tmp_path / "out", "diffusers")
    kept = json.loads((again / "scheduler/scheduler_config.json").read_text())
    assert (kept["_class_name"], kept["original_inference_steps"]) == ("LCMScheduler", 20)
    assert kept["beta_schedule"] == before["beta_schedule"]
    assert json.loads((again / "words.json").read_text()) == words
    assert load_model(again).suggested == load_model(folder).suggested != {}
    # What is said about the model while it is converted counts more than what its folder says.
    told = convert(folder, tmp_path / "told", "diffusers", opening=OpenOptions(prediction="v", prefer_plain=True))
    kept = json.loads((told / "scheduler/scheduler_config.json").read_text())
    assert (kept["_class_name"], kept["prediction_type"]) == ("LCMScheduler", "v_prediction")


def test_what_a_single_file_cannot_hold_is_said(tmp_path, capsys):
    assert main(["convert", "emoji-turbo", str(tmp_path / "turbo.safetensors"), "--to", "ldm"]) == 0
    said = capsys.readouterr().err
    assert "cannot say that it draws with LCMScheduler: give --sampler lcm --steps 4 --guidance 1" in said
    assert "holds no tokenizer, and this model has its own: undertow.load(FILE, text='emoji-turbo')" in said
    assert main(["convert", "emoji-turbo", str(tmp_path / "turbo"), "--to", "diffusers"]) == 0
    assert not capsys.readouterr().err
    folder, file = tmp_path / "turbo", tmp_path / "quantized.safetensors"
    assert main(["quantize", str(folder), str(file), "--to", "int8-weights"]) == 0
    assert "undertow.load(FILE, text='turbo')" in capsys.readouterr().err
    assert main(["convert", str(file), str(tmp_path / "back"), "--to", "diffusers"]) == 0
    assert (
        "it cannot draw before tokenizer/ of the folder that it came from is copied into it" in capsys.readouterr().err
    )
    shutil.copytree(folder / "tokenizer", tmp_path / "back/tokenizer")
    load_model(tmp_path / "back")


STORED = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""As safetensors' headers call them."""


def stored_types(target: Path) -> dict[str, set[str]]:
    """The types of floats in each file's header, by the folder that it lies in: read without PyTorch."""
    found: dict[str, set[str]] = {}
    for file in [target] if target.is_file() else sorted(target.rglob("*.safetensors")):
        content = file.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        types = {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
        found[file.parent.name] = {kind for kind in types if not kind.startswith("I")}
    return found


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_part_of_a_folder_is_written_in_the_type_that_was_asked_for(dtype, pipelines, tmp_path):
    """R141: each weight rounded to it once, in the U-Net, the VAE and both text encoders."""
    target = convert(pipelines["sdxl"], tmp_path / "out", "diffusers", dtype=dtype)
    assert stored_types(target) == {part: {STORED[dtype]} for part in ("unet", "vae", "text_encoder", "text_encoder_2")}
    assert_same(weights(target), {name: tensor.to(dtype) for name, tensor in weights(pipelines["sdxl"]).items()})


def test_a_file_is_written_in_the_type_that_was_asked_for_and_loads_in_it(pipelines, tmp_path):
    source: Path = pipelines["sd1"]
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        source = convert(source, tmp_path / f"{STORED[dtype]}.safetensors", "ldm", dtype=dtype)
        assert set().union(*stored_types(source).values()) == {STORED[dtype]}
        assert load_unet_from(source).dtype == dtype
        model = load_model(source, device="meta")  # which computes in any type
        assert model.require_unet().dtype == model.require_vae().dtype == dtype
        assert {one.dtype for one in model.require_text().encoders} == {dtype}


def test_averaged_weights_can_be_written(tmp_path):
    from safetensors.torch import save_file

    unet = build(MINIS["sd1"])
    plain = ldm_tensors(unet)
    averaged = {
        f"model_ema.{name.removeprefix('model.').replace('.', '')}": tensor * 2 for name, tensor in plain.items()
    }
    save_file(plain | averaged, tmp_path / "in.safetensors")
    opening = OpenOptions(config=unet.config, ema=True)
    convert(tmp_path / "in.safetensors", tmp_path / "out", "diffusers", opening=opening)
    written = load_file(tmp_path / "out/unet/diffusion_pytorch_model.safetensors")
    assert torch.equal(written["conv_in.weight"], unet.conv_in.weight * 2)


def test_a_pixel_model_has_no_ldm_names(tmp_path):
    save_unet(build(MPIX), tmp_path / "model")
    with pytest.raises(ConfigError, match="save a folder"):
        convert(tmp_path / "model", tmp_path / "out.safetensors", "ldm")
    assert not (tmp_path / "out.safetensors").exists()


def test_what_is_there_is_not_overwritten(pipelines, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(InvalidInput, match="new or empty folder"):
        convert(pipelines["sd1"], tmp_path / "out", "diffusers")
    with pytest.raises(InvalidInput, match=r"ends in \.safetensors"):
        convert(pipelines["sd1"], tmp_path / "out.ckpt", "ldm")
    with pytest.raises(InvalidInput, match="one of 'diffusers', 'ldm', 'gguf'"):
        convert(pipelines["sd1"], tmp_path / "x", "onnx")


FULL_DISK = """
import resource, undertow
from undertow.checkpoints.write.convert import convert
forms = {{"diffusers": "", "ldm": ".safetensors"}}
for to, ending in forms.items():
    convert({source!r}, {warm!r} + ending, to)  # everything is imported now
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
for to, ending in forms.items():
    try:
        convert({source!r}, {target!r} + ending, to)
    except OSError as error:
        print(to, error.errno)
"""


def test_a_write_that_fails_half_way_leaves_nothing(pipelines, tmp_path):
    """A real failing write of either form: the system refuses the file's millionth byte, as a full disk would."""
    names = {"source": str(pipelines["sd1"]), "warm": str(tmp_path / "warm")}
    (tmp_path / "place").mkdir()
    code = FULL_DISK.format(**names, target=str(tmp_path / "place" / "target"))
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"{to} {errno.EFBIG}" for to in ("diffusers", "ldm")], done.stderr
    assert not list((tmp_path / "place").iterdir())


def test_a_source_is_never_its_own_destination(pipelines, tmp_path):
    """Nor is a link to it, of either kind, nor any place in its folder; nothing is changed and nothing is left."""
    folder = shutil.copytree(pipelines["sd1"], tmp_path / "folder")
    file = convert(folder, tmp_path / "model.safetensors", "ldm")
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    (tmp_path / "hard.safetensors").hardlink_to(file)
    (tmp_path / "soft.safetensors").symlink_to(file)
    (tmp_path / "shard.safetensors").hardlink_to(unet)
    (tmp_path / "way").symlink_to(folder)
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    for source, destination, to in (
        (file, file, "ldm"),
        (file, tmp_path / "hard.safetensors", "ldm"),
        (file, tmp_path / "soft.safetensors", "ldm"),
        (tmp_path / "soft.safetensors", file, "ldm"),
        (folder, unet, "ldm"),
        (folder, tmp_path / "shard.safetensors", "ldm"),
        (folder, tmp_path / "way" / "new.safetensors", "ldm"),
        (tmp_path / "way", folder / "new", "diffusers"),
    ):
        with pytest.raises(InvalidInput, match="which is read for it; name another one"):
            convert(source, destination, to, dtype=torch.float16)
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX'")
def test_a_folder_has_the_permissions_of_a_new_one_and_follows_no_link(pipelines, tmp_path):
    """All its files alike, under the umask, a tokenizer's too, whatever those they are copied from have."""
    source = shutil.copytree(pipelines["sd1"], tmp_path / "source")
    words = source / "tokenizer" / "merges.txt"
    words.parent.mkdir()
    words.write_text("a b")
    words.chmod(0o444)
    before = os.umask(0o027)
    try:
        folder = convert(source, tmp_path / "folder", "diffusers")
    finally:
        os.umask(before)
    found = {stat.filemode(path.stat().st_mode) for path in (folder, *folder.rglob("*"))}
    assert found == {"drwxr-x---", "-rw-r-----"}
    words.unlink()
    words.symlink_to("/etc/passwd")
    with pytest.raises(CorruptFile, match="a link to a place outside the folder"):
        convert(source, tmp_path / "again", "diffusers")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "source"]


def test_a_full_disk_leaves_the_old_model(tmp_path, monkeypatch):
    save_unet(build(MINIS["sd1"]), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_unet(build(MINIS["sd1"], seed=5), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_single_file_describes_its_own_architecture(pipelines, tmp_path):
    """A miniature's widths are nobody's: the header says what the shapes cannot."""
    file = convert(pipelines["sdxl"], tmp_path / "model.safetensors", "ldm")
    assert undertow.load_unet(file).config.levels == MINIS["sdxl"].config.levels
    assert identify(file).config == load_model(pipelines["sdxl"]).require_unet().config


def test_edm_models_load_as_a_unet_and_are_refused_as_a_model(tmp_path):
    from safetensors.torch import save_file

    file = tmp_path / "model.safetensors"
    markers = {"edm_mean": torch.zeros(1, 4, 1, 1), "edm_std": torch.ones(1, 4, 1, 1)}
    save_file(ldm_tensors(build(MINIS["sd1"])) | markers, file)
    config: UNetConfig = MINIS["sd1"].config
    with pytest.raises(UnsupportedModel, match="EDM"):
        load_model(file, config=config)
