"""Where the style LoRAs ship, what their cards say, and what does not ship."""

import pytest
import torch

from recipes.emoji.adapter_card import STYLE_BYTES, STYLED, ship_style, trained_as
from recipes.emoji.styles import STYLES
from tests.services import pipeline_folder
from tests.training.lora_runs import load, pictures, random_lora, settings
from undertow import Adapter
from undertow.adapters.lora.write import write_lora
from undertow.adapters.manager import AdapterManager
from undertow.checkpoints.files.weights import write_tensors
from undertow.errors import DataError, UnknownCheckpoint
from undertow.training.lora_export import export_lora


@pytest.fixture(scope="module")
def model():
    return load(pipeline_folder("sd1"))


def trained(model, path, *, format="kohya"):
    chosen = settings()
    write_lora(export_lora(random_lora(model, chosen), model, pictures(), chosen, path.stem), path, format=format)
    return path


def test_styles_ship_under_the_names_by_which_the_model_finds_them(model, tmp_path):
    file, folder = trained(model, tmp_path / "emoji-mosaic.safetensors"), tmp_path / "model" / "adapters"
    shipped = [ship_style(file, style, folder) for style in STYLES]
    assert sorted(path.name for path in folder.iterdir()) == [
        "OFL.txt",
        "line-drawing.md",
        "line-drawing.safetensors",
        "mosaic.md",
        "mosaic.safetensors",
    ]
    assert all(path.read_bytes() == file.read_bytes() for path in shipped)
    manager = AdapterManager(model.unet, model.text, folder=folder.parent)
    for about in STYLED.values():
        assert manager.resolve_each([Adapter(about.title)])
        card = (folder / f"{about.title}.md").read_text()
        assert card.startswith(f"# {about.title}\n")
        assert f'Adapter("{about.title}")' in card
        assert "Training: rank 4, 4 steps, 4 pictures, learning rate 0.005." in card
        assert "docs/results/lora.md" in card
        assert "recipes/emoji/style_data.py" in card
        assert "SIL Open Font License" in card


def test_every_style_has_a_card():
    assert STYLED.keys() == STYLES.keys()
    assert len({about.summary for about in STYLED.values()}) == len(STYLED)


def test_a_card_says_of_training_what_the_file_does():
    assert trained_as({}) == ""
    assert trained_as({"format": "pt", "ss_steps": "7"}) == "Training: 7 steps."


def test_what_is_no_lora_or_too_large_does_not_ship(model, tmp_path):
    layer = torch.zeros(STYLE_BYTES // 8 // 4 + 1, 8)
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    large, other, unknown = (tmp_path / f"{stem}.safetensors" for stem in ("large", "other", "unknown"))
    write_tensors({f"{name}.lora_down.weight": layer.T.contiguous(), f"{name}.lora_up.weight": layer}, large, {})
    write_tensors({"controlnet_cond_embedding.conv_in.weight": torch.zeros(1)}, other, {})
    write_tensors({"x": torch.zeros(1)}, unknown, {})
    with pytest.raises(DataError, match=r"6\.0 MB, and at most 3 MB.*--rank"):
        ship_style(large, "mosaic", tmp_path / "out")
    with pytest.raises(DataError, match="a ControlNet, not a LoRA"):
        ship_style(other, "mosaic", tmp_path / "out")
    with pytest.raises(UnknownCheckpoint):
        ship_style(unknown, "mosaic", tmp_path / "out")
    assert not (tmp_path / "out").exists()
