"""What was drawn is never lost to a place that cannot be written: said before drawing where it can be known, and kept
elsewhere where it cannot."""

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.services import pipeline_folder
from undertow.cli import main
from undertow.cli.written_pictures import not_in_place, written_somewhere
from undertow.pictures.names import PicturePlace

FAST = ["--steps", "1", "--sampler", "euler", "--precision", "f32", "--no-show"]


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("undertow.cli.written_pictures.mkdtemp", lambda prefix: str(place))
    return place


@pytest.mark.parametrize("command", [["generate", "x"], ["compare", "x"], ["sample", "digits-flow"]])
def test_a_name_that_no_file_can_have_is_refused_before_anything_is_loaded(command, tmp_path, capsys):
    assert main([*command, "--out", str(tmp_path / f"{300 * 'a'}.png")]) == 2
    assert "names of at most 240 bytes" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    [
        ["extract", "MODEL", "MODEL", "PLACE/lora.safetensors"],
        ["convert", "MODEL", "PLACE/model.safetensors", "--to", "ldm"],
        ["convert", "MODEL", "PLACE/model", "--to", "diffusers"],
        ["quantize", "MODEL", "PLACE/model.safetensors", "--to", "int8-weights"],
        ["quantize", "MODEL", "PLACE/model", "--to", "int8-weights"],
        ["prune", "MODEL", "PLACE/model", "--images", "IMAGES", "--width", "0.5"],
        ["export", "MODEL", "--to", "torch-export", "--out", "PLACE/model"],
        ["train", "lora", "--model", "MODEL", "--images", "IMAGES", "--out", "PLACE/run"],
        ["train", "digits", "--out", "PLACE/run"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_place_that_takes_no_files_is_refused_before_anything_is_loaded(command, tmp_path, capsys, monkeypatch):
    def refuse(dir: Path):
        raise OSError(30, "Read-only file system", str(dir))

    monkeypatch.setattr("undertow.pictures.names.TemporaryFile", refuse)
    for loads in ("loading.load", "checkpoints.write.convert.convert", "training.pixel_models.train_pixel_model"):
        monkeypatch.setattr(f"undertow.{loads}", None)
    (tmp_path / "place").mkdir()
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "red apple.png")
    places = {"MODEL": pipeline_folder("sd1"), "PLACE": tmp_path / "place", "IMAGES": tmp_path / "images"}
    capsys.readouterr()
    assert main([re.sub("MODEL|PLACE|IMAGES", lambda found: str(places[found[0]]), word) for word in command]) == 2
    error = capsys.readouterr().err
    assert "takes no files (Read-only file system)" in error
    assert error.count("\n") == 1
    assert not any((tmp_path / "place").iterdir())


def test_pictures_whose_folder_is_gone_are_drawn_and_kept_elsewhere(tmp_path, temporary, capsys, monkeypatch):
    out = tmp_path / "out"
    taken = PicturePlace.taken

    def once_gone(self: PicturePlace, fields: dict):
        if self.folder == out:  # as a full disk, or a folder that is taken away while it draws
            raise OSError(28, "No space left on device", str(out))
        return taken(self, fields)

    monkeypatch.setattr(PicturePlace, "taken", once_gone)
    line = ["generate", "red apple", "--model", str(pipeline_folder("sd1")), "--out", str(out), *FAST]
    assert main([*line, "--seed", "7", "--count", "2"]) == 2
    printed = capsys.readouterr()
    assert printed.out.split() == [str(temporary / "7.png"), str(temporary / "8.png")]
    assert "expected a folder that takes files (No space left on device); kept in" in printed.err
    for name in ("7.png", "8.png"):
        with Image.open(temporary / name) as picture:
            assert "parameters" in picture.info


def test_what_is_written_in_place_says_nothing(tmp_path, temporary):
    place = PicturePlace.of(tmp_path / "sheet.png")
    path, error = written_somewhere(place, {}, lambda path: path.write_bytes(b"drawn"))
    assert (path, error, path.read_bytes()) == (tmp_path / "sheet.png", None, b"drawn")


def test_where_nothing_can_be_written_the_error_is_that_of_the_second_place(tmp_path, temporary):
    def refuse(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    shutil.rmtree(temporary)
    place = PicturePlace.of(tmp_path / "sheet.png")
    with pytest.raises(OSError, match="No space left") as error:
        written_somewhere(place, {}, refuse)
    assert str(not_in_place(place, temporary, error.value)).startswith("--out is ")
