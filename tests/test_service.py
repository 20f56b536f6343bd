"""Loading a U-Net from the Python facade."""

import pytest
import torch

import undertow
from tests.golden.minis import MUNC, TIMESTEPS, build, latents_for
from undertow import service
from undertow.checkpoints import save_unet
from undertow.errors import InvalidInput, UnknownCheckpoint


@pytest.fixture
def unet():
    return build(MUNC)


@torch.no_grad()
def test_a_model_folder_is_loaded_by_path(tmp_path, unet):
    save_unet(unet, tmp_path)
    for source in (tmp_path, str(tmp_path)):
        loaded = undertow.load_unet(source)
        latents = latents_for(MUNC)
        assert torch.allclose(loaded(latents, TIMESTEPS), unet(latents, TIMESTEPS), atol=1e-5)
        assert not loaded.training


def test_a_pipeline_folder_gives_its_unet(tmp_path, unet):
    save_unet(unet, tmp_path / "unet")
    assert undertow.load_unet(tmp_path).config == MUNC.config


def test_type_and_device_are_the_callers(tmp_path, unet):
    save_unet(unet, tmp_path, dtype=torch.float16)
    assert undertow.load_unet(tmp_path).dtype == torch.float16
    loaded = undertow.load_unet(tmp_path, dtype=torch.bfloat16, device="cpu")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert undertow.load_unet(tmp_path, device="meta").device.type == "meta"


def test_an_embedded_model_is_loaded_by_name(tmp_path, unet, monkeypatch):
    save_unet(unet, tmp_path / "models" / "mini")
    monkeypatch.setattr(service, "files", lambda _package: tmp_path)
    assert list(service.embedded_models()) == ["mini"]
    assert undertow.load_unet("mini").config == MUNC.config


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(UnknownCheckpoint, match="no-such-model") as caught:
        undertow.load_unet("no-such-model")
    for name in service.embedded_models():
        assert name in caught.value.remedy


def test_an_unknown_place_is_refused(tmp_path):
    with pytest.raises(UnknownCheckpoint, match="no such"):
        undertow.load_unet(tmp_path / "nowhere")


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UnknownCheckpoint, match=r"config\.json"):
        undertow.load_unet(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64], ids=str)
def test_a_type_that_is_not_floating_point_is_refused(tmp_path, dtype):
    with pytest.raises(InvalidInput, match="floating-point") as caught:
        undertow.load_unet(tmp_path, dtype=dtype)
    assert caught.value.argument == "dtype"
