"""`undertow plan`: its answer, as text, JSON and picture, and its exit codes; without torch."""

import json
import subprocess
import sys

import pytest
from PIL import Image

import undertow
from tests.checkpoints.crafted import ldm_shapes, sparse_file, unet_shapes
from tests.embedded import EMOJI, SIDE
from undertow.cli import main
from undertow.cli.plan import DOES_NOT_FIT
from undertow.cli.plan_picture import parts_of
from undertow.cli.plan_text import seconds_text, shortened
from undertow.memory.plan import plan
from undertow.memory.work import Work
from undertow.shortage import size_in_words
from undertow.unet.config import CrossAttention, Level, UNetConfig

TINY = UNetConfig(levels=(Level(channels=320, attention=CrossAttention(heads=8)),), context_dim=768)
WORK = Work(size=(SIDE, SIDE), vae_dtype="float32", merged=True, kept_text=True)
FREELY = plan(EMOJI, WORK)
BETWEEN = (FREELY.smallest_bytes + FREELY.asked_bytes) // 2
"""Bytes of a budget into which emoji fits with measures alone."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERTOW_CACHE", str(tmp_path / "cache"))


def shown(capsys, *arguments: str) -> tuple[int, str]:
    code = main(["plan", *arguments])
    return code, capsys.readouterr().out


def test_the_answer_is_yes_with_what_gives_way(capsys):
    code, text = shown(capsys, "emoji", "--budget", str(BETWEEN))
    found = plan(EMOJI, WORK, BETWEEN)
    assert code == 0
    assert found.measures
    assert (
        f"Fits into {size_in_words(BETWEEN)}, where without measures it would take {size_in_words(found.asked_bytes)}"
        in text
    )
    for number, measure in enumerate(found.measures, 1):
        (line,) = (line for line in text.splitlines() if line.startswith(f" {number}. "))
        assert measure.name in line
        assert f"-{size_in_words(measure.saved_bytes)}" in line
    for stage in found.stages:
        assert size_in_words(stage.weight_bytes + stage.activation_bytes) in text
    assert size_in_words(found.process_bytes) in text
    assert "run it again with --measure" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_answer_is_no_with_the_smallest_plan(capsys):
    code, text = shown(capsys, "emoji", "--budget", "100MB")
    smallest = plan(EMOJI, WORK).smallest_bytes
    assert code == DOES_NOT_FIT == 3
    assert f"Does not fit into 100 MB: the smallest plan takes {size_in_words(smallest)}" in text


def test_what_fits_as_it_is(capsys):
    code, text = shown(capsys, "emoji", "--budget", "100GB")
    assert code == 0
    assert "Fits into 100 GB as it is." in text
    assert f"{SIDE}x{SIDE}, 1 picture, 20 steps with guidance, float32" in text


def test_a_model_in_few_steps_is_planned_as_it_is_drawn(capsys):
    assert ", 1 picture, 4 steps without guidance, float32" in shown(capsys, "emoji-turbo")[1]
    typed = shown(capsys, "emoji-turbo", "--steps", "7", "--guidance")[1]
    assert ", 1 picture, 7 steps with guidance, float32" in typed
    turbo = undertow.load("emoji-turbo")
    assert (turbo.plan().work.steps, turbo.plan().work.branches) == (4, 1)
    assert (turbo.plan(steps=7).work.steps, turbo.plan(guidance=True).work.branches) == (7, 2)


def test_json_says_the_same(capsys):
    code, text = shown(capsys, "emoji", "--budget", str(BETWEEN), "--json")
    assert code == 0
    assert json.loads(text) == json.loads(json.dumps(plan(EMOJI, WORK, BETWEEN).to_json()))


def test_the_picture_shows_each_stage(tmp_path, capsys):
    file = tmp_path / "plan.png"
    assert main(["plan", "emoji", "--budget", str(BETWEEN), "--picture", str(file)]) == 0
    assert capsys.readouterr().err == f"wrote {file}\n"
    with Image.open(file) as image:
        assert min(image.size) > 400
        assert len(image.convert("RGB").getcolors(2**20) or ()) > 8
    for stage in plan(EMOJI, WORK).stages:
        assert sum(parts_of(stage).values()) == stage.weight_bytes + stage.activation_bytes


def test_measured_once_the_seconds_are_there(capsys):
    code, text = shown(capsys, "digits-flow", "--steps", "2", "--measure", "--json")
    measured = json.loads(text)["seconds"]
    assert code == 0
    assert measured > 0
    assert json.loads(shown(capsys, "digits-flow", "--steps", "2", "--json")[1])["seconds"] == pytest.approx(measured)
    assert json.loads(shown(capsys, "digits-flow", "--steps", "4", "--json")[1])["seconds"] > measured
    assert "for each picture on this machine" in shown(capsys, "digits-flow", "--steps", "2")[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sdlx"], "did you mean 'sdxl'"),
        (["./missing.safetensors"], "no such file or folder"),
        (["sd15", "--size", "508x512"], "expected multiples of 8 pixels, as sd15 draws them; the nearest is 512x512"),
        (["cifar10", "--controlnet", "1"], "--controlnet is 1, expected none: cifar10 takes no ControlNet"),
        (["sd15", "--budget", "6 lightyears"], "expected an amount of memory; such as 6GB"),
        (["sd15", "--budget", "0GB"], "expected more than no memory"),
    ],
)
def test_what_cannot_be_planned_is_answered_in_a_sentence(arguments, words, capsys):
    assert main(["plan", *arguments]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_a_file_that_is_no_model_is_named(tmp_path, capsys):
    file = tmp_path / "notes.txt"
    file.write_text("nothing but words, and more of them than a header is long")
    assert main(["plan", str(file)]) == 2
    assert "this is text, not a model" in " ".join(capsys.readouterr().err.split())


def test_names_of_files_are_text_and_nothing_else(tmp_path, capsys):
    """Neither a terminal nor matplotlib obeys them."""
    file = sparse_file(tmp_path / "red \x1b[31m $x^{.safetensors", unet_shapes(TINY))
    code, text = shown(capsys, str(file), "--size", "64", "--picture", str(tmp_path / "plan.svg"))
    assert code == 0
    assert "\x1b" not in text
    assert "red \\x1b[31m $x^{: 64x64" in text


def test_without_a_budget_elsewhere_there_is_no_verdict(capsys):
    code, text = shown(capsys, "emoji", "--device", "cuda")
    assert code == 0
    assert "say with --budget how much memory there is" in text


def test_a_plan_needs_neither_torch_nor_the_other_verbs(tmp_path):
    """What takes a plan from a quarter of a second to seconds; by family, embedded name and header."""
    file = sparse_file(tmp_path / "model.safetensors", ldm_shapes(UNetConfig.sd15()))
    code = (
        "import sys; from undertow.cli import main\n"
        "for model in sys.argv[1:]: assert main(['plan', model, '--budget', '90GB']) == 0\n"
        "slow = {'torch', 'numpy', 'PIL', 'rich', 'jaxtyping', 'huggingface_hub', 'transformers', 'matplotlib'}\n"
        "sys.exit(str(slow & sys.modules.keys()) if slow & sys.modules.keys() else "
        "[name for name in sys.modules if name == 'undertow.cli.generate'] or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "sd15", "emoji", str(file)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_durations_and_modules_are_short():
    assert [seconds_text(one) for one in (0.04, 12.34, 200, 9000)] == ["0.0 s", "12.3 s", "3 min", "2.5 h"]
    assert shortened("up_blocks.3.attentions.0", 12) == "…ttentions.0"
    assert shortened("mid_block", 12) == "mid_block"


def test_a_picture_replaces_a_link_and_not_what_it_leads_to(capsys, tmp_path):
    (tmp_path / "other.txt").write_text("somebody's")
    (tmp_path / "plan.png").symlink_to(tmp_path / "other.txt")
    shown(capsys, "emoji", "--picture", str(tmp_path / "plan.png"), "--overwrite")
    assert (tmp_path / "other.txt").read_text() == "somebody's"
    assert not (tmp_path / "plan.png").is_symlink()
    Image.open(tmp_path / "plan.png").verify()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--count", "1000000000"], "at most 100,000 pictures"),
        (["--size", "100000000x100000000"], "at most 67,108,864 pixels"),
        (["--steps", "1000000000"], "at most 100,000 steps"),
        (["--lora", "1000000000"], "at most 100 regions or adapters"),
        (["--prompt-chunks", "1000000000"], "at most 32,768 tokens"),
    ],
)
def test_what_nobody_draws_is_refused(capsys, arguments, words):
    assert main(["plan", "emoji", *arguments]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
