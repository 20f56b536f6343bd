"""Which type each part is loaded in: decided from what is stored, asked for and computed; then converted on the way."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.checkpoints.pipelines import save_pipeline
from tests.vae.allocations import with_peak
from undertow import processor
from undertow.checkpoints.read.dtypes import PartDType, choose_dtypes
from undertow.checkpoints.read.model_loading import load_model
from undertow.errors import UnknownCheckpoint
from undertow.vae.config import VAEConfig

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
PARTS = ("unet", "clip_l", "openclip_g", "vae")
SAFE, OVERFLOWS = VAEConfig.sd(), VAEConfig.sdxl()


def computed(stored: torch.dtype, config: VAEConfig = SAFE, **asked: object) -> tuple[list[torch.dtype], list[str]]:
    """The type of the networks and of the VAE, and every note once."""
    given = {"dtype": None, "vae_dtype": None, "device": "cpu", **asked}
    found = choose_dtypes(dict.fromkeys(PARTS, stored), vae_config=config, **given)
    assert list(found) == list(PARTS)
    assert found["unet"] == found["clip_l"] == found["openclip_g"]
    notes = dict.fromkeys(part.note for part in found.values() if part.note is not None)
    return [found["unet"].compute_dtype, found["vae"].compute_dtype], list(notes)


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        (F32, {}, [F32, F32]),
        (F16, {}, [F32, F32]),
        (BF16, {}, [F32, F32]),
        (F32, {"dtype": F16}, [F16, F32]),
        (F32, {"dtype": BF16}, [F32, F32]),
        (F16, {"dtype": F32}, [F32, F32]),
        (F16, {"vae_dtype": F16}, [F32, F16]),
        (F32, {"vae_dtype": BF16}, [F32, BF16]),
        (F16, {"dtype": F16, "vae_dtype": F16}, [F16, F16]),
        (F16, {"device": "cuda"}, [F16, F16]),
        (F16, {"device": "meta"}, [F16, F16]),
        (F32, {"dtype": F16, "device": "cuda"}, [F16, F16]),
    ],
    ids=str,
)
def test_a_cpu_without_bfloat16_computes_in_float32_unless_float16_was_asked_for(stored, asked, expected, monkeypatch):
    monkeypatch.setattr(processor, "has_bfloat16", lambda: False)
    assert computed(stored, **asked)[0] == expected


def test_a_processor_with_bfloat16_computes_in_it(monkeypatch):
    monkeypatch.setattr(processor, "has_bfloat16", lambda: True)
    for asked in ({}, {"dtype": BF16}):
        assert computed(BF16, **asked) == ([BF16, BF16], [])


def test_a_vae_that_would_overflow_computes_in_float32_beside_a_float16_unet():
    types, notes = computed(F16, OVERFLOWS, device="cuda")
    assert types == [F16, F32]
    assert notes == ["VAE in torch.float32: these weights' activations leave float16's range (force_upcast)"]
    assert computed(F16, OVERFLOWS, device="cuda", vae_dtype=F16) == ([F16, F16], [])


def test_the_notes_name_each_type_once_and_the_vae_last(monkeypatch):
    monkeypatch.setattr(processor, "has_bfloat16", lambda: False)
    stored = {"unet": F16, "clip_l": BF16, "openclip_g": BF16, "vae": F16}
    found = choose_dtypes(stored, dtype=None, vae_dtype=None, device=None, vae_config=SAFE)
    notes = list(dict.fromkeys(part.note for part in found.values()))
    assert [note.split(":")[0] for note in notes] == [
        "float16 weights compute in float32, which takes its memory",
        "bfloat16 weights compute in float32, which takes its memory",
        "VAE in torch.float32",
    ]


def test_weights_are_rounded_to_what_was_asked_for_before_they_become_float32(monkeypatch):
    """So that a model draws the same picture on every processor."""
    monkeypatch.setattr(processor, "has_bfloat16", lambda: False)
    found = choose_dtypes({"unet": F32}, dtype=BF16, vae_dtype=None, device="cpu", vae_config=None)
    assert (found["unet"].dtype, found["unet"].compute_dtype) == (BF16, F32)
    assert PartDType(dtype=F32, compute_dtype=F32).note is None


@pytest.fixture
def half(tmp_path):
    """A pipeline stored in float16."""
    folder = save_pipeline(tmp_path, "sd1")
    for file in folder.rglob("*.safetensors"):
        stored = {name: t.half() if t.is_floating_point() else t for name, t in load_file(file).items()}
        save_file(stored, file, metadata={"format": "pt"})
    return folder


def test_weights_are_converted_while_they_are_read_one_tensor_at_a_time(half, monkeypatch):
    converted = []
    monkeypatch.setattr(nn.Module, "_apply", lambda module, *_, **__: converted.append(module) or module)
    model, peak = with_peak(lambda: load_model(half))
    assert not converted, "no network is converted as a whole"
    networks = [model.require_unet(), model.require_vae(), *(one.clip for one in model.require_text().encoders)]
    weights = [parameter for network in networks for parameter in network.parameters()]
    assert {parameter.dtype for parameter in weights} == {F32}
    assert all(torch.equal(parameter, parameter.half().float()) for parameter in weights)
    total, largest = sum(one.nbytes for one in weights), max(one.nbytes for one in weights)
    assert total <= peak < total + 3 * largest


def test_everything_is_opened_before_anything_is_read(half, tmp_path, monkeypatch):
    """A wrong `vae=` costs no reading of gigabytes."""
    read = []
    monkeypatch.setattr("undertow.checkpoints.files.weights.Weights.each", lambda *_: read.append(True) or iter(()))
    with pytest.raises(UnknownCheckpoint, match="no such file or folder"):
        load_model(half, vae=tmp_path / "nowhere.safetensors")
    assert not read
