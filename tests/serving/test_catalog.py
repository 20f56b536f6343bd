"""The catalog: what is there by name, told from headers alone."""

import hashlib
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from tests.embedded import FACTOR, SIDE
from tests.services import copy_pipeline
from undertow.adapters.kinds import adapter_title
from undertow.embedded import embedded_models
from undertow.errors import InvalidInput
from undertow.serving.catalog.catalog import Catalog, misfit
from undertow.serving.settings import ServerSettings

READER = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


def lora(width: int) -> dict[str, torch.Tensor]:
    return {f"{READER}.lora_down.weight": torch.ones(2, width), f"{READER}.lora_up.weight": torch.ones(8, 2)}


def catalog_of(folder, **models) -> Catalog:
    settings = ServerSettings(models=models or {"emoji": "emoji"}, adapters=(folder,))
    return Catalog(settings, refresh_s=0.0)


@pytest.fixture
def shelf(tmp_path):
    """A folder as people fill it."""
    folder = tmp_path / "adapters"
    (folder / "deeper").mkdir(parents=True)
    save_file(lora(192), folder / "fits.safetensors", metadata={"ss_output_name": "a fitting one"})
    save_file(lora(768), folder / "deeper" / "of-sd1.safetensors")
    save_file({"emb_params": torch.ones(2, 192)}, folder / "word.safetensors")
    save_file({"double_blocks.0.img_attn.proj.lora_A.weight": torch.ones(2, 2)}, folder / "flux.safetensors")
    save_file(lora(192), folder / "deeper" / "fits.safetensors")
    (folder / "torn.safetensors").write_bytes((folder / "fits.safetensors").read_bytes()[:-3])
    (folder / "old.ckpt").write_bytes(pickle.dumps({"a": 1}))
    (folder / "notes.md").write_text("none")
    return folder


def test_what_came_with_a_model_is_listed_as_the_engine_reads_it(tmp_path):
    catalog = catalog_of(tmp_path)
    found = {entry.name: entry for entry in catalog.adapters("emoji")}
    assert found.keys() == {"edges", "line-drawing", "mosaic", "references", "turbo"}
    for entry in found.values():  # the engine's own reader, with torch
        assert adapter_title(entry.path).endswith(entry.kind)
    assert found["mosaic"].hash == hashlib.sha256(found["mosaic"].path.read_bytes()).hexdigest()
    assert all(entry.text_width == 192 and entry.model == "emoji" for entry in found.values())
    images = [file.name for file in found["references"].files]
    assert "preprocessor_config.json" in images  # its image encoder is part of it


def test_a_model_is_known_by_its_configs_alone(tmp_path):
    entry = catalog_of(tmp_path).model()
    assert (entry.name, entry.family, entry.dtype, entry.trained_size) == ("emoji", "sd1", "float32", SIDE)
    assert entry.subject.factor == FACTOR


def test_files_are_what_their_headers_say(shelf):
    catalog = catalog_of(shelf)
    found = {entry.name: entry for entry in catalog.adapters() if entry.model is None}
    assert {name: entry.kind for name, entry in found.items()} == {
        "fits": "LoRA",
        "of-sd1": "LoRA",
        "word": "textual inversion",
    }
    assert found["fits"].title == "a fitting one"
    assert found["word"].words == ("word",)
    assert "of-sd1" not in {entry.name for entry in catalog.adapters("emoji")}
    assert "768 wide" in str(misfit(found["of-sd1"], catalog.model("emoji")))
    skipped = {one.name: one.reason for one in catalog.skipped}
    assert "this is a LoRA of FLUX" in skipped["flux"]
    assert "not a whole safetensors file" in skipped["torn"]
    assert "pickle" in skipped["old.ckpt"]
    assert "same name" in skipped["fits"]
    assert not any(str(shelf) in one.reason for one in catalog.skipped)


@pytest.mark.parametrize("name", ["../fits", "/etc/passwd", "https://host/fits.safetensors", "deeper/of-sd1", ""])
def test_a_name_is_never_a_path(shelf, name):
    catalog = catalog_of(shelf)
    with pytest.raises(InvalidInput, match="an adapter of this service"):
        catalog.adapter(name)
    with pytest.raises(InvalidInput, match="a model of this service"):
        catalog.model(name)


def test_near_names_are_offered(shelf):
    catalog = catalog_of(shelf)
    with pytest.raises(InvalidInput, match="did you mean 'mosaic'"):
        catalog.adapter("mosiac", "emoji")
    with pytest.raises(InvalidInput, match="did you mean 'emoji'"):
        catalog.model("emojis")
    with pytest.raises(InvalidInput, match="not a whole safetensors file"):
        catalog.adapter("torn")
    assert catalog.adapter("fits.safetensors").name == "fits"


def test_what_cannot_be_drawn_with_is_said(tmp_path):
    models = {"emoji": "emoji", "gone": str(tmp_path / "nowhere"), "digits": "digits-ddpm", "sd1": "sd1"}
    catalog = catalog_of(tmp_path, **models)
    assert list(catalog.models) == ["emoji"]
    reasons = {one.name: one.reason for one in catalog.skipped}
    assert reasons.keys() == {"gone", "digits", "sd1"}
    with pytest.raises(InvalidInput, match="no autoencoder"):
        catalog.model("digits")


def test_changes_are_seen(shelf):
    catalog = catalog_of(shelf)
    before = catalog.adapter("fits").hash
    assert catalog.adapter("fits") is catalog.adapter("fits")
    save_file(lora(192), shelf / "fits.safetensors", metadata={"ss_output_name": "another"})
    os.utime(shelf / "fits.safetensors", ns=(1, 1))
    assert catalog.adapter("fits").hash != before
    (shelf / "fits.safetensors").unlink()
    (shelf / "deeper" / "fits.safetensors").unlink()
    with pytest.raises(InvalidInput):
        catalog.adapter("fits")


def test_another_file_of_a_model_is_another_model(tmp_path):
    folder = copy_pipeline("sd1", tmp_path / "tiny")
    catalog = catalog_of(tmp_path / "none", tiny=str(folder))
    before = catalog.model().hash
    (folder / "README.md").write_text("read by nobody")
    assert catalog.model().hash == before
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.013"))
    assert catalog.model().hash != before


def test_the_models_of_the_package_are_those_of_its_folder():
    assert Catalog(ServerSettings()).model("emoji").path == embedded_models()["emoji"]
