"""Hashes by which A1111 and Civitai know files; the values are what `sha256sum` says of the bytes."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from undertow.checkpoints.files import hashes
from undertow.checkpoints.files.hashes import lora_hash, model_hash


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    save_file({"a": torch.arange(4, dtype=torch.float32)}, tmp_path / "style.safetensors", metadata={"title": "one"})
    return tmp_path / "style.safetensors"


def test_a_model_is_known_by_the_sha256_of_its_file(lora: Path):
    assert model_hash(lora) == hashlib.sha256(lora.read_bytes()).hexdigest()[:10]


def test_a_folder_is_known_by_its_unet(tmp_path: Path, lora: Path):
    (tmp_path / "model" / "unet").mkdir(parents=True)
    (tmp_path / "model" / "unet" / "config.json").write_text("{}")
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(lora.read_bytes())
    assert model_hash(tmp_path / "model") == model_hash(lora)
    assert model_hash(tmp_path / "nothing") is None


def test_a_lora_is_known_by_its_tensors_whatever_its_header_says(tmp_path: Path, lora: Path):
    tensors = torch.arange(4, dtype=torch.float32).numpy().tobytes()
    assert lora_hash(lora) == hashlib.sha256(tensors).hexdigest()[:12]
    save_file({"a": torch.arange(4, dtype=torch.float32)}, tmp_path / "b.safetensors", metadata={"title": "another"})
    assert lora_hash(tmp_path / "b.safetensors") == lora_hash(lora)
    assert model_hash(tmp_path / "b.safetensors") != model_hash(lora)


def test_a_large_file_is_hashed_once_and_again_when_it_changes(tmp_path: Path, lora: Path, monkeypatch):
    monkeypatch.setenv("UNDERTOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "REMEMBERED_BYTES", 1)
    first = model_hash(lora)
    place = tmp_path / "cache" / "hashes.json"
    known = json.loads(place.read_text())
    assert [value[:10] for value in known.values()] == [first]
    place.write_text(json.dumps(dict.fromkeys(known, "f" * 64)))
    assert model_hash(lora) == "f" * 10, "what was remembered is taken"
    lora.write_bytes(lora.read_bytes() + b" ")
    assert model_hash(lora) == hashlib.sha256(lora.read_bytes()).hexdigest()[:10]
    place.write_text("no JSON")
    assert model_hash(lora) == hashlib.sha256(lora.read_bytes()).hexdigest()[:10]


def test_without_a_place_to_remember_files_are_hashed_all_the_same(lora: Path, monkeypatch):
    monkeypatch.setenv("UNDERTOW_CACHE", str(lora))  # a file, in which there can be no folder
    monkeypatch.setattr(hashes, "REMEMBERED_BYTES", 1)
    assert model_hash(lora) == hashlib.sha256(lora.read_bytes()).hexdigest()[:10]


def test_a_small_file_is_read_once_and_again_when_it_changes(lora: Path, monkeypatch):
    read = []
    monkeypatch.setattr(hashes, "_sha256", lambda path, part: read.append(path) or "e" * 64)
    assert [model_hash(lora), model_hash(lora)] == ["e" * 10] * 2
    assert len(read) == 1
    lora.write_bytes(lora.read_bytes()[::-1])  # as long as it was
    model_hash(lora)
    assert len(read) == 2
