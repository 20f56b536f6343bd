"""What is named as a model, as the networks of a plan; and the types that it would be loaded in."""

import json
from itertools import product

import pytest
import torch

from tests.checkpoints.crafted import sparse_file, unet_shapes
from tests.services import pipeline_folder, service_of
from undertow.checkpoints.read.dtypes import choose_dtypes
from undertow.errors import UnknownCheckpoint
from undertow.memory import subjects
from undertow.memory.machine import Machine
from undertow.memory.subjects import computed_types, named_model
from undertow.unet.config import UNetConfig
from undertow.unet.presets import PRESETS
from undertow.vae.config import VAEConfig

TYPES = ("float32", "float16", "bfloat16")


@pytest.mark.parametrize("name", PRESETS)
def test_families_are_known_by_name_in_any_case(name):
    assert named_model(name.upper()).subject.unet == PRESETS[name]()
    assert named_model(name).stored == "float32"


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_folder_is_planned_as_the_service_that_is_loaded_from_it(family):
    named, service = named_model(str(pipeline_folder(family))), service_of(family)
    found, own = named.subject, service.plan()
    assert (found.unet, named.stored) == (service.config, "float32")
    assert [network.width for network in found.text_encoders] == [
        one.config.width for one in service.model.text.encoders
    ]
    assert own.work.size == (service.config.sample_size * found.factor,) * 2


def test_embedded_models_are_computed_in_float32(tmp_path):
    assert named_model("emoji").stored == "float32"
    half = sparse_file(tmp_path / "half.safetensors", unet_shapes(UNetConfig.sd15()))
    assert named_model(str(half)).stored == "float16"
    small = sparse_file(tmp_path / "small.safetensors", unet_shapes(UNetConfig.sd15()), dtype="F8_E4M3")
    assert named_model(str(small)).stored == "float16"


def test_a_name_that_is_none_is_answered_with_near_ones():
    with pytest.raises(UnknownCheckpoint, match=r"did you mean 'sdxl'\?.*known names: sd15, .*emoji"):
        named_model("sdlx")


@pytest.mark.parametrize("bfloat16", [True, False])
def test_types_are_those_that_loading_takes(bfloat16, monkeypatch):
    """`choose_dtypes` is the rule; what it asks the processor is answered here for both kinds."""
    monkeypatch.setattr("undertow.processor._has_bfloat16", lambda: bfloat16)
    monkeypatch.setattr("undertow.processor._once", lambda question: question())
    monkeypatch.setattr(subjects, "this_machine", lambda: Machine(bfloat16=bfloat16))
    for stored, asked, vae_asked, device, config in product(
        TYPES, (None, *TYPES), (None, *TYPES), ("cpu", "cuda"), (VAEConfig.sd(), VAEConfig.sdxl())
    ):
        if device == "cuda" and torch.cuda.is_available():
            continue
        chosen = choose_dtypes(
            {"unet": getattr(torch, stored), "vae": getattr(torch, stored)},
            dtype=None if asked is None else getattr(torch, asked),
            vae_dtype=None if vae_asked is None else getattr(torch, vae_asked),
            device=device,
            vae_config=config,
        )
        expected = tuple(str(chosen[part].compute_dtype).removeprefix("torch.") for part in ("unet", "vae"))
        found = computed_types(stored, asked, vae_asked, device=device, overflows=config.force_upcast)
        assert found == expected, (stored, asked, vae_asked, device)


def test_a_folder_of_configs_alone_is_a_model(tmp_path):
    """What somebody asks before the download."""
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        config = json.loads((pipeline_folder("sd1") / part / "config.json").read_text())
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    found = named_model(str(tmp_path))
    assert (found.stored, found.subject.text_encoders) == ("float32", ())
    assert found.subject.vae is not None
