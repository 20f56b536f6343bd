"""`undertow preprocess` on real files."""

import cv2
import numpy as np
import pytest
from PIL import Image

from undertow.cli import main


def run(*arguments) -> int:
    return main(["preprocess", *(str(argument) for argument in arguments)])


@pytest.fixture
def picture(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    path = tmp_path / "noise.png"
    Image.fromarray(cv2.GaussianBlur(noise, (0, 0), 2)).save(path)
    return path


def test_canny_is_written_beside_nothing_else(picture, tmp_path, capsys):
    out = tmp_path / "maps" / "edges.png"
    assert run("canny", picture, "--low", 20, "--high", 60, "--out", out) == 0
    assert f"wrote {out} (70x50)" in capsys.readouterr().out
    with Image.open(out) as made, Image.open(picture) as source:
        assert (np.asarray(made) == cv2.Canny(np.asarray(source), 20, 60)).all()


def test_the_picture_itself_is_not_replaced(picture, tmp_path, capsys):
    (tmp_path / "link.png").hardlink_to(picture)
    before = picture.read_bytes()
    for out in (picture, tmp_path / "link.png"):
        assert run("canny", picture, "--out", out) == 2
        assert "expected another place than" in capsys.readouterr().err
    assert picture.read_bytes() == before


@pytest.mark.parametrize("kind", ["canny", "soft-edges", "scribble", "lineart", "blur", "tile"])
def test_every_kind_is_cut_to_a_multiple_when_asked(kind, picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(kind, picture, "--multiple", 8) == 0
    with Image.open(tmp_path / f"noise-{kind}.png") as made:
        assert made.size == (72, 48)


def test_a_depth_map_of_sixteen_bits_is_normalized_and_a_mask_noted(tmp_path, capsys):
    ramp = np.linspace(2000, 9000, 64).astype(np.uint16)[None].repeat(16, 0)
    Image.fromarray(ramp).save(tmp_path / "far.png")
    out = tmp_path / "near.png"
    assert run("depth", tmp_path / "far.png", "--inverted", "--out", out) == 0
    with Image.open(out) as made:
        row = np.asarray(made)[0].astype(int)
    assert (row[0], row[-1]) == (255, 0)
    assert "note" not in capsys.readouterr().err
    Image.fromarray(np.eye(16, dtype=np.uint8)).save(tmp_path / "mask.png")
    assert run("depth", tmp_path / "mask.png", "--out", out, "--overwrite") == 0
    assert "2 different values" in capsys.readouterr().err


def test_grid_takes_a_size(picture, tmp_path):
    out = tmp_path / "cut.png"
    assert run("grid", picture, "--multiple", 8, "--size", "32x64", "--fitting", "pad", "--out", out) == 0
    with Image.open(out) as made:
        assert made.size == (32, 64)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("canny", "{picture}", "--low", "300"), "low <= high"),
        (("canny", "{picture}", "--out", "edges.txt"), "ends in .png"),
        (("grid", "{picture}", "--size", "big"), "WIDTHxHEIGHT"),
        (("grid", "{picture}", "--size", "30x64"), "multiples of 64"),
        (("depth", "{picture}"), "not a color scale"),
        (("canny", "nowhere.png"), "a picture file"),
        (("hed", "{picture}"), "No such command"),
    ],
)
def test_what_cannot_be_made_is_one_sentence(arguments, said, picture, capsys):
    assert run(*(part.format(picture=picture) for part in arguments)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_second_map_of_a_picture_gets_a_name_of_its_own(picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [run("blur", str(picture)) for _ in range(2)] == [0, 0]
    assert {f"{picture.stem}-blur.png", f"{picture.stem}-blur-2.png"} <= {path.name for path in tmp_path.iterdir()}
