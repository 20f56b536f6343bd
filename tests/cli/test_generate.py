"""`undertow generate` as a user meets it."""

import json
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.services import pipeline_folder
from undertow.cli import main

FAST = ["--steps", "2", "--sampler", "euler", "--precision", "f32"]


@pytest.fixture(scope="module")
def folder():
    return str(pipeline_folder("sd1"))


def draw(folder, out, *options):
    return main(["generate", "red apple", "--model", folder, "--out", str(out), *FAST, *options])


def test_pictures_are_written_under_their_seeds_and_their_places_printed(folder, tmp_path, capsys):
    assert draw(folder, tmp_path, "--count", "2", "--seed", "7", "--size", "48x32", "--guidance", "2") == 0

    printed = capsys.readouterr()
    assert printed.out.split() == [str(tmp_path / "7.png"), str(tmp_path / "8.png")]
    assert "2 of 48x32 by euler: text" in printed.err
    with Image.open(tmp_path / "7.png") as image:
        assert image.size == (48, 32)
        assert "Seed: 7, Size: 48x32" in image.info["parameters"]


def test_a_picture_repeats_itself_bit_by_bit(folder, tmp_path):
    draw(folder, tmp_path, "--count", "2", "--seed", "7", "--negative", "dark", "--sampler", "euler_a")

    assert main(["generate", "--from", str(tmp_path / "8.png"), "--out", str(tmp_path / "again.png"), *FAST[4:]]) == 0
    first, again = (np.asarray(Image.open(tmp_path / name)) for name in ("8.png", "again.png"))
    assert np.array_equal(first, again)


def test_debug_prints_what_passed_and_when(folder, tmp_path, capsys):
    assert draw(folder, tmp_path, "--debug", "nan,shapes,timing") == 0

    error = capsys.readouterr().err
    for name in ("text_context_cond", "step_0_noise_uncond", "step_1_latents", "vae_output", "unet:"):
        assert name in error


def test_unknown_words_are_noted_beside_the_picture(folder, tmp_path, capsys):
    words = tmp_path / "model"
    shutil.copytree(folder, words)
    known = {"words": ["red", "apple", "on"], "emoji": ["red apple"], "colors": ["blue"], "relations": []}
    (words / "words.json").write_text(json.dumps(known))
    assert main(["generate", "(red appel:1.2) on zebra", "--model", str(words), "--out", str(tmp_path), *FAST]) == 0

    printed = capsys.readouterr()
    assert printed.out.split() == [str(tmp_path / "0.png")]
    assert "note: never learned by this model: 'appel' (near: 'apple' as in red apple); 'zebra';" in printed.err
    assert "try: " not in printed.err, "suggestions are for the model that ships"


def test_without_a_model_the_embedded_one_draws_and_suggests_what_is_next(tmp_path, capsys):
    picture = tmp_path / "0.png"
    assert main(["generate", "red apple on white background", "--out", str(tmp_path)]) == 0

    printed = capsys.readouterr()
    assert printed.out.split() == [str(picture)]
    suggestions = [line for line in printed.err.splitlines() if line.startswith("try: undertow generate ")]
    assert len(suggestions) == 3
    assert "note:" not in printed.err
    with Image.open(picture) as image:
        assert image.size == (64, 64)
        assert "Model: emoji" in image.info["parameters"]
        first = np.asarray(image)
    for index, suggestion in enumerate(suggestions):
        command = shlex.split(suggestion.partition("#")[0])[2:]
        where = [] if "--out" in command else ["--out", str(tmp_path / str(index))]
        command = [str(tmp_path / part) if part == "again.png" else part for part in command]
        assert main([*command, *where]) == 0
    with Image.open(tmp_path / "again.png") as again:
        assert np.array_equal(first, np.asarray(again))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate"], 'for example undertow generate "red apple on white background"'),
        (["generate", "x", "--model", "nothing-here"], "no such file or folder"),
        (["generate", "x", "--model", "MODEL", "--size", "48"], "WIDTHxHEIGHT"),
        (["generate", "x", "--model", "MODEL", "--size", "33x48"], "the nearest is 32x48"),
        (["generate", "x", "--model", "MODEL", "--sampler", "eular"], "did you mean"),
        (["generate", "x", "--model", "MODEL", "--debug", "vay"], "a comma list of nan, timing, shapes"),
        (["generate", "--from", "missing.png"], "a picture that undertow wrote"),
        (["generate", "x", "--model", "MODEL", "--precision", "f8"], "f8"),
        (["generate", "x", "--model", "MODEL", "--device", "cudda"], "a device of this machine"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence_and_exit_2(folder, arguments, words, capsys):
    assert main([folder if argument == "MODEL" else argument for argument in arguments]) == 2

    error = capsys.readouterr().err
    assert words in error.replace("\n", " ")
    assert "Traceback" not in error
