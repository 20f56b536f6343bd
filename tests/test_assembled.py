"""Embedded models that are a LoRA and a scheduler in the package, and a whole folder in the cache."""

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline

import undertow
from tests.services import copy_pipeline, fresh_service
from undertow.adapters.lora.extraction import as_lora, extract_lora, networks_of
from undertow.adapters.lora.write import write_lora
from undertow.assembled import WHOLE, assembled, is_described
from undertow.checkpoints.read.model_loading import load_model
from undertow.embedded import embedded_models
from undertow.errors import UnknownCheckpoint

SCHEDULER = "scheduler/scheduler_config.json"


@pytest.fixture
def described(tmp_path, monkeypatch):
    """A description of a model beside its base, and a cache of its own."""
    monkeypatch.setenv("UNDERTOW_CACHE", str(tmp_path / "cache"))
    base, folder = copy_pipeline("sd1", tmp_path / "models/base"), tmp_path / "models/quick"
    before, after = fresh_service("sd1").model, fresh_service("sd1").model
    with torch.no_grad():
        for parameter in after.require_unet().parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    found = extract_lora({"unet": networks_of(before)["unet"]}, {"unet": networks_of(after)["unet"]}, 3)
    write_lora(as_lora(found, before, after, "quick"), base / "adapters/quick.safetensors", format="kohya")
    scheduler = json.loads((base / SCHEDULER).read_text()) | {"_class_name": "LCMScheduler", "steps_offset": 1}
    index = json.loads((base / "model_index.json").read_text()) | {"scheduler": ["diffusers", "LCMScheduler"]}
    (folder / "scheduler").mkdir(parents=True)
    (folder / "assembled.json").write_text(json.dumps({"base": "base", "lora": "adapters/quick.safetensors"}))
    (folder / SCHEDULER).write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "README.md").write_text("# quick\n")
    (base / "adapters/other.safetensors").write_bytes(b"of the base")
    return folder


def test_it_is_its_base_with_the_lora_merged_and_diffusers_reads_it(described):
    assert is_described(described)
    assert not is_described(described.parent / "base")
    place = assembled(described)
    assert place.name == "quick"
    assert sorted(path.name for path in (place / "adapters").iterdir()) == ["other.safetensors"], "but the merged one"
    assert not (place / "assembled.json").exists()
    assert (place / "README.md").read_text() == "# quick\n"
    whole, base = load_model(place), undertow.load(described.parent / "base", dtype=torch.float32)
    assert whole.sampler.scheduler == "LCMScheduler"
    lora = str(described.parent / "base/adapters/quick.safetensors")
    quick, ask = (
        undertow.load(place, dtype=torch.float32),
        {"prompt": "a", "steps": 1, "sampler": "euler", "guidance_scale": 1.0},
    )
    apart = quick.generate(**ask).latents - base.generate(**ask).latents
    same = quick.generate(**ask).latents - base.generate(**ask, adapters=[lora]).latents
    assert apart.abs().max() > 0
    assert same.abs().max() < 1e-3 * apart.abs().max()
    assert isinstance(StableDiffusionPipeline.from_pretrained(place).scheduler, LCMScheduler)


def test_it_is_put_together_once_and_anew_for_other_weights(described):
    place = assembled(described)
    made = (place / "unet/diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    assert assembled(described) == place
    assert (place / "unet/diffusion_pytorch_model.safetensors").stat().st_mtime_ns == made
    assert [one.name for one in place.parent.iterdir()] == ["quick"], "no draft is left"
    (described / "README.md").write_text("# another\n")
    assert assembled(described) not in (None, place)


def test_files_are_read_once_for_each_change(described, monkeypatch):
    place, read = assembled(described), []
    monkeypatch.setattr(Path, "read_bytes", lambda path, own=Path.read_bytes: read.append(path.name) or own(path))
    assert assembled(described) == place
    assert read == []
    index = described / "model_index.json"
    before = index.stat()
    index.write_bytes(index.read_bytes().replace(b"LCM", b"TCD"))
    os.utime(index, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert assembled(described) != place, "though its size and its time are the same"


@pytest.mark.parametrize("name", ["emoji", "emoji-turbo"])
def test_diffusers_draws_with_embedded_models_as_they_are(name):
    pipeline = StableDiffusionPipeline.from_pretrained(embedded_models()[name])
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline("owl on red background", num_inference_steps=2, guidance_scale=1.0, output_type="np").images[0]
    assert drawn.std() > 0.05


def test_what_was_removed_or_cut_short_is_put_together_again(described):
    place = assembled(described)
    weights = place / "unet/diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    (place / "notes.txt").write_text("of somebody else")
    for damage in (
        weights.unlink,
        lambda: weights.write_bytes(whole[:100]),
        lambda: shutil.rmtree(place / "vae"),
        lambda: (place / WHOLE).write_text('{"unet'),
    ):
        damage()
        assert assembled(described) == place
        assert weights.read_bytes() == whole
        (place / "notes.txt").write_text("of somebody else")
    shutil.rmtree(place)
    place.mkdir()
    assert (assembled(described) / "vae").is_dir()


def test_files_of_the_package_may_be_for_reading_only(described):
    for path in (*described.rglob("*"), *(described.parent / "base").rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    place = assembled(described)
    assert all(path.stat().st_mode & 0o200 for path in (place, *place.rglob("*")))


def test_without_a_cache_each_process_puts_it_together_and_the_reason_is_told_once(
    described, tmp_path, monkeypatch, caplog
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("UNDERTOW_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        place = assembled(described)
        assert assembled(described) == place
    assert (place / "unet/diffusion_pytorch_model.safetensors").is_file()
    assert place.parent.parent.stat().st_mode & 0o077 == 0, "nobody else can exchange it"
    (line,) = (record.getMessage() for record in caplog.records)
    assert "each process puts quick together anew" in line
    assert "UNDERTOW_CACHE" in line


def test_without_any_place_one_sentence_says_what_to_do(described, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (described / "README.md").write_text("# not put together by this process yet\n")
    monkeypatch.setenv("UNDERTOW_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(UnknownCheckpoint, match=r"quick: it is put together .* no place .*UNDERTOW_CACHE"):
        assembled(described)
    assert "emoji" in embedded_models()
