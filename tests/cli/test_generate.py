"""`undertow generate` as a user meets it."""

import io
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.embedded import SIDE
from tests.services import pipeline_folder
from undertow.cli import main
from undertow.cli.written_pictures import PictureWriter
from undertow.engine.events import PictureEvent

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
    assert "2 of 48x32 by euler, seeds 7 to 8: text" in printed.err
    with Image.open(tmp_path / "7.png") as image:
        assert image.size == (48, 32)
        assert "Seed: 7, Size: 48x32" in image.info["parameters"]


def test_a_picture_repeats_itself_bit_by_bit(folder, tmp_path):
    draw(folder, tmp_path, "--count", "2", "--seed", "7", "--negative", "dark", "--sampler", "euler_a")

    assert (
        main(
            [
                "generate",
                "--from",
                str(tmp_path / "8.png"),
                "--out",
                str(tmp_path / "again.png"),
                "--model",
                folder,
                *FAST[4:],
            ]
        )
        == 0
    )
    first, again = (np.asarray(Image.open(tmp_path / name)) for name in ("8.png", "again.png"))
    assert np.array_equal(first, again)


def test_two_plain_runs_are_two_pictures_of_two_seeds(folder, tmp_path, capsys):
    assert [draw(folder, tmp_path) for _ in range(2)] == [0, 0]
    first, second = (int(Path(line).stem) for line in capsys.readouterr().out.split())
    assert first != second
    assert max(first, second) < 2**32


def test_nothing_that_exists_is_replaced_unless_told(folder, tmp_path, capsys):
    for overwrite, name in (((), "7.png"), ((), "7-2.png"), (("--overwrite",), "7.png")):
        assert draw(folder, tmp_path, "--seed", "7", *overwrite) == 0
        assert capsys.readouterr().out.split() == [str(tmp_path / name)]


@pytest.mark.parametrize("option", ["--out", "--preview"])
def test_what_a_picture_is_made_from_is_not_replaced(folder, option, tmp_path, capsys):
    """Not even when existing files may be replaced, nor by another name of the same file."""
    for name in ("photo.png", "mask.png"):
        Image.new("RGB", (32, 32), (10, 20, 30)).save(tmp_path / name)
    (tmp_path / "link.png").symlink_to(tmp_path / "photo.png")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    given = ("--image", str(tmp_path / "photo.png"), "--mask", str(tmp_path / "mask.png"), "--overwrite")
    for name in before:
        assert draw(folder, tmp_path / "new.png", *given, option, str(tmp_path / name)) == 2
        assert f"{option} is" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_place_is_checked_before_anything_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("undertow.loading.load", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "there.png").touch()
    for option, value, words in (
        ("--out", "o.bmp", "a folder, or a file that ends in .png, .jpg, .jpeg or .webp"),
        ("--out", "there.png", "a file that is not there yet; allow it to be replaced (--overwrite)"),
        ("--out", "there.png/below", "a folder that can be made"),
        ("--preview", "prev.txt", "a file that ends in .png, .jpg, .jpeg or .webp"),
        ("--name", "{sed}", "did you mean {seed}?"),
    ):
        place = value if option == "--name" else str(tmp_path / value)
        assert main(["generate", "red apple", option, place]) == 2
        assert words in " ".join(capsys.readouterr().err.split())


def test_a_mask_of_a_lora_is_refused_as_such(capsys):
    for more, words in (
        ([], "expected names that --adapter gives: there are none; mosaic is a LoRA, which acts on the whole picture"),
        (["--adapter", "edges=map.png"], "--adapter gives: edges; mosaic is a LoRA, which acts on the whole picture"),
    ):
        command = ["generate", "owl", "--lora", "mosaic", *more, "--adapter-mask", "mosaic=m.png"]
        assert main(command) == 2
        assert words in " ".join(capsys.readouterr().err.split())


def test_each_format_is_written_and_repeats_itself(folder, tmp_path, capsys):
    for suffix, form in ((".jpg", "JPEG"), (".webp", "WEBP")):
        made, again = tmp_path / f"made{suffix}", tmp_path / f"again{suffix}"
        assert draw(folder, made, "--seed", "7") == 0
        assert (
            main(["generate", "--from", str(made), "--out", str(again), "--model", folder, "--precision", "f32"]) == 0
        )
        with Image.open(made) as first, Image.open(again) as second:
            assert (first.format, second.format) == (form, form)
            assert np.array_equal(np.asarray(first), np.asarray(second))


@pytest.mark.parametrize("second", [[], ["--enlarge", "2", "--enlarge-strength", "0.5"]], ids=["once", "enlarged"])
def test_a_picture_along_sigmas_tells_its_steps_and_repeats_itself(folder, tmp_path, capsys, second):
    made, again = tmp_path / "made.png", tmp_path / "again.png"
    sigmas = ["generate", "red apple", "--model", folder, "--precision", "f32", "--sampler", "euler", "--no-show",
              "--size", "64", "--seed", "7", "--sigmas", "14,5,1,0"]  # fmt: skip
    assert main([*sigmas, *second, "--out", str(made)]) == 0
    capsys.readouterr()
    repeat = ["generate", "--from", str(made), "--out", str(again), "--model", folder, "--precision", "f32"]
    assert main([*repeat, "--no-show"]) == 0
    assert "no effect" not in capsys.readouterr().err
    with Image.open(made) as first, Image.open(again) as repeated:
        assert "Steps: 3, " in first.info["parameters"]
        assert json.loads(first.info["undertow"])["request"]["steps"] == 3
        assert np.array_equal(np.asarray(first), np.asarray(repeated))


def test_standard_output_takes_one_picture_and_nothing_else(folder, tmp_path, capsysbinary):
    assert draw(folder, "-", "--seed", "7") == 0
    written = capsysbinary.readouterr().out
    with Image.open(io.BytesIO(written)) as image:
        assert "Seed: 7" in image.info["parameters"]
    assert draw(folder, "-", "--count", "2") == 2
    assert b"standard output takes one" in capsysbinary.readouterr().err


def test_an_interruption_keeps_what_is_finished_and_says_so(folder, tmp_path, monkeypatch, capsys):
    """The second picture's file is there when the third is drawn: Ctrl-C then loses only what is not finished."""
    taken = PictureWriter.take

    def interrupted(self: PictureWriter, event: PictureEvent) -> None:
        if event.picture == 2:
            assert sorted(path.name for path in tmp_path.iterdir()) == ["7.png", "8.png"]
            raise KeyboardInterrupt
        taken(self, event)

    monkeypatch.setattr(PictureWriter, "take", interrupted)
    assert draw(folder, tmp_path, "--seed", "7", "--count", "4") == 130
    printed = capsys.readouterr()
    assert printed.out.split() == [str(tmp_path / "7.png"), str(tmp_path / "8.png")]
    assert "kept: 2 of 4 pictures" in printed.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["7.png", "8.png"]


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
    line = ["generate", "(red appel:1.2) on zebra", "--model", str(words), "--out", str(tmp_path), "--seed", "0", *FAST]
    assert main(line) == 0

    printed = capsys.readouterr()
    assert printed.out.split() == [str(tmp_path / "0.png")]
    assert "note: never learned by this model: 'appel' (near: 'apple' as in red apple); 'zebra';" in printed.err
    assert "try: " not in printed.err, "suggestions are for the model that ships"


def test_notes_are_plain_each_once_and_the_useful_first(tmp_path, capsys):
    command = ["generate", "owl on zebra", "--lora", "mosaic", "--count", "2", "--steps", "1", "--no-show"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == len(set(notes))
    assert "zebra" in notes[0], "what the prompt has wrong goes before where an adapter is"
    assert notes[-1] == "note: mosaic: added to the model's weights while it draws"


def test_without_a_model_the_embedded_one_draws_and_suggests_what_is_next(tmp_path, capsys):
    few = ["--steps", "3"]
    assert main(["generate", "red apple on white background", "--out", str(tmp_path), *few]) == 0

    printed = capsys.readouterr()
    (picture,) = tmp_path.iterdir()
    assert printed.out.split() == [str(picture)]
    assert f"1 of {SIDE}x{SIDE} by dpmpp_2m, seed {picture.stem}:" in printed.err, "the seed is random, and is told"
    suggestions = [line for line in printed.err.splitlines() if line.startswith("try: undertow generate ")]
    assert len(suggestions) == 3
    assert "note:" not in printed.err
    with Image.open(picture) as image:
        assert image.size == (SIDE, SIDE)
        assert "Model: emoji" in image.info["parameters"]
        first = np.asarray(image)
    for index, suggestion in enumerate(suggestions):
        command = shlex.split(suggestion.partition("#")[0])[2:]
        where = [] if "--out" in command else ["--out", str(tmp_path / str(index))]
        command = [str(tmp_path / part) if part == "again.png" else part for part in command]
        assert main([*command, *where, *few]) == 0
    with Image.open(tmp_path / "again.png") as again:
        assert np.array_equal(first, np.asarray(again))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate"], 'for example undertow generate "red apple on white background"'),
        (["generate", "x", "--model", "nothing-here"], "no such file or folder"),
        (["generate", "x", "--model", "MODEL", "--size", "48x"], "WIDTHxHEIGHT"),
        (["generate", "x", "--model", "MODEL", "--size", "33x48"], "the nearest is 32x48"),
        (["generate", "x", "--model", "MODEL", "--sampler", "eular"], "did you mean"),
        (
            ["generate", "x", "--model", "MODEL", "--debug", "vay"],
            "a comma list of timing, nan, shapes, vae, sampler, layers",
        ),
        (["generate", "--from", "missing.png"], "a picture file; there is no such file"),
        (["generate", "x", "--model", "MODEL", "--precision", "f8"], "f8"),
        (["generate", "x", "--model", "MODEL", "--device", "cudda"], "did you mean 'cuda'?"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence_and_exit_2(folder, arguments, words, capsys):
    assert main([folder if argument == "MODEL" else argument for argument in arguments]) == 2

    error = capsys.readouterr().err
    assert words in error.replace("\n", " ")
    assert "Traceback" not in error
