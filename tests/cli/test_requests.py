"""Kinds of request and contact sheets on the command line."""

import numpy as np
import pytest
from PIL import Image

from tests.services import pipeline_folder
from undertow import Adapter
from undertow.cli import main
from undertow.cli.option_values import parse_loras

FAST = ["--steps", "2", "--sampler", "euler", "--precision", "f32", "--no-show"]


@pytest.fixture(scope="module")
def folder():
    return str(pipeline_folder("sd1"))


@pytest.fixture
def photo(tmp_path):
    colors = np.random.default_rng(0).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(colors).resize((32, 32)).save(tmp_path / "photo.png")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (16, 0, 32, 32))
    mask.save(tmp_path / "mask.png")
    return tmp_path / "photo.png", tmp_path / "mask.png"


def draw(folder, out, *options):
    return main(["generate", "red apple", "--model", folder, "--out", str(out), *FAST, *map(str, options)])


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image, dtype=int)


def test_inpainting_keeps_what_the_mask_keeps_and_repeats_itself(folder, tmp_path, photo, capsys):
    image, mask = photo
    out = tmp_path / "out.png"
    assert draw(folder, out, "--image", image, "--mask", mask, "--strength", 1) == 0
    assert np.array_equal(pixels(out)[:, :16], pixels(image)[:, :16])

    again = ["generate", "--from", str(out), "--out", str(tmp_path / "again.png"), "--precision", "f32", "--no-show"]
    assert main(again) == 2
    assert "give model 'pipeline' (hash" in " ".join(capsys.readouterr().err.split())
    again += ["--model", folder, "--overwrite"]
    assert main(again) == 0
    assert np.array_equal(pixels(tmp_path / "again.png"), pixels(out))
    assert "note:" not in capsys.readouterr().err
    moved = image.rename(tmp_path / "moved.png")
    assert main(again) == 0, "its pictures are in it"
    assert main([*again, "--image", str(moved), "--mask", str(mask)]) == 0
    assert np.array_equal(pixels(tmp_path / "again.png"), pixels(out))
    assert "note: given now, in place of what is stored: image, mask" in capsys.readouterr().err


def test_a_preview_follows(folder, tmp_path):
    assert draw(folder, tmp_path / "a.png", "--preview", tmp_path / "shown" / "now.png") == 0
    assert pixels(tmp_path / "shown" / "now.png").shape == (16, 16, 3)  # a pixel for each cell of the latents
    (tmp_path / "shown" / "now.png").write_text("another's")
    assert draw(folder, tmp_path / "b.png", "--preview", tmp_path / "shown" / "now.png", "--overwrite") == 0
    assert pixels(tmp_path / "shown" / "now.png").shape == (16, 16, 3)


def test_every_kind_of_option_reaches_the_request(folder, tmp_path):
    out = tmp_path / "a.png"
    options = ["--regions", "a cat@0,0,0.5,1,2", "--enlarge", 1.5, "--views", "--seamless", "x", "--variation", "7:0.2"]
    options += ["--guidance-method", "apg+rescale", "--sampler", "euler_a", "--sampler-option", "eta=0.5"]
    assert draw(folder, out, *options, "--sigmas", "10,2,0") == 0

    assert pixels(out).shape == (48, 48, 3)


def test_an_overlap_asks_for_views(folder, tmp_path):
    whole, seen = tmp_path / "whole.png", tmp_path / "seen.png"
    for out, options in ((whole, ()), (seen, ("--view-overlap", "0"))):
        assert draw(folder, out, "--size", "64x32", *options) == 0
    assert (pixels(whole) != pixels(seen)).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image", "nothing.png"], "a picture file"),
        (["--view-overlap", "1"], "from 0 to below 1"),
        (["--regions", "a cat"], "PROMPT@LEFT"),
        (["--regions", "a cat@0,0,0,1"], "left < right"),
        (["--seamless", "z"], "--seamless is 'z', expected one of none, x, y, both"),
        (["--strength-as", "me"], "--strength-as is 'me', expected one of diffusers, comfy, a1111"),
        (["--strength", "2"], "strength is 2"),
        (["--variation", "7"], "SEED:STRENGTH"),
        (["--sampler-option", "eta"], "NAME=NUMBER"),
        (["--sigmas", "a,b"], "noise levels"),
        (["--guidance-method", "magic"], "guidance_method"),
        (["--enlarge", "1"], "above 1"),
    ],
)
def test_bad_options_are_one_sentence(folder, tmp_path, capsys, options, message):
    assert draw(folder, tmp_path / "a.png", *options) == 2
    error = capsys.readouterr().err
    assert message in " ".join(error.split())
    assert not (tmp_path / "a.png").exists()


def test_compare_puts_pictures_on_a_sheet(folder, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    lists = ["--samplers", "euler,ddim", "--steps", "1,2,3", "--guidance", "3"]
    assert main(["compare", "red apple", "--model", folder, "--out", str(sheet), *lists]) == 0

    assert capsys.readouterr().out.split() == [str(sheet)]
    height, width, _ = pixels(sheet).shape
    assert width > 3 * 96
    assert height > 2 * 96


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        (["--steps", "1,2", "--guidance", "3,4"], "two with more than one entry"),
        (["--steps", "few"], "numbers with commas"),
        (["--samplers", "eular"], "euler"),
        (["--schedules", "none"], "schedule"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_picture(folder, tmp_path, capsys, lists, message):
    command = ["compare", "a", "--model", folder, "--out", str(tmp_path / "sheet.png"), "--samplers", "euler,ddim"]
    assert main([*command, *lists]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("text", "source", "scale"),
    [
        ("style.safetensors", "style.safetensors", 1.0),
        ("style.safetensors@0.8", "style.safetensors", 0.8),
        ("folder/style.safetensors@-1", "folder/style.safetensors", -1.0),
        ("style.safetensors@0,1,0.5", "style.safetensors", (0.0, 1.0, 0.5)),
        ("owner/name@main", "owner/name@main", 1.0),
    ],
)
def test_a_lora_has_a_scale_or_several_behind_its_file(text, source, scale):
    (adapter,) = parse_loras([text], {"up_blocks.*": 0.5})
    assert adapter == Adapter(source, scale=scale, blocks={"up_blocks.*": 0.5})


def test_no_lora_is_no_adapter():
    assert parse_loras(None, {}) == ()
