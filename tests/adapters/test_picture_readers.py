"""Which adapters read a picture is told by names alone, as their kinds tell it by looking closer."""

import pytest

from tests.adapters.beside import control_file, picture, prompt_file, t2i_folder
from tests.services import service_of
from undertow import Adapter, InvalidInput
from undertow.adapters.files.picture_readers import picture_reader, require_pictures
from undertow.adapters.kinds import adapter_title
from undertow.embedded import embedded_models

BUNDLED = embedded_models()["emoji"] / "adapters"


def test_files_are_told_as_their_kinds_tell_them(tmp_path):
    unet = service_of("sd1").unet
    files = {
        control_file(tmp_path / "control", unet, seed=1),
        t2i_folder(tmp_path / "t2i", unet, seed=1),
        prompt_file(tmp_path / "prompt.safetensors", unet, seed=1),
        BUNDLED / "edges",
        BUNDLED / "edges" / "diffusion_pytorch_model.safetensors",
        BUNDLED / "references",
        BUNDLED / "mosaic.safetensors",
    }
    for file in files:
        found, title = picture_reader(file), adapter_title(file).partition(" ")[2]
        assert found == (None if title == "LoRA" else title), file


def test_what_cannot_be_read_is_left_to_those_who_read_it(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    (tmp_path / "config.json").write_text("[]")
    assert picture_reader(tmp_path / "broken.safetensors") is None
    assert picture_reader(tmp_path) is None


@pytest.mark.parametrize(("count", "several_allowed", "words"), [
    (0, False, "image of edges is missing, expected one control map for this ControlNet"),
    (2, False, "image of edges is 2 pictures, expected one control map"),
    (0, True, "image of edges is missing, expected reference pictures"),
])  # fmt: skip
def test_pictures_that_are_missing_or_too_many_are_refused(count, several_allowed, words):
    adapter = Adapter("edges", image=tuple(picture(seed) for seed in range(count)) or None)
    with pytest.raises(InvalidInput, match=words):
        require_pictures(adapter, "ControlNet", several_allowed=several_allowed)
    require_pictures(Adapter("edges", image=picture(1)), "ControlNet", several_allowed=several_allowed)
