"""Mistakes are answered at once, with the file they are in and in words that are not Python's."""

import io
import json
import shutil
import socket
import threading

import pytest
from PIL import Image

from tests.services import pipeline_folder
from undertow.cli import main
from undertow.embedded import embedded_models
from undertow.errors import ConfigError, in_plain_words, naming_file
from undertow.pictures.files import open_picture
from undertow.training.run_lock import only_training


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(line: list[str], capsys) -> str:
    """What a command line that is refused says, in one line."""
    assert main(line) == 2
    lines = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["plan", "sd15", "--device", "tpu"], "expected one of cpu, cuda; try"),
        (["convert", "x", "y", "--to", "difusers"], "expected one of diffusers, ldm, gguf; did you mean diffusers?"),
        (["convert", "x", "y", "--to", "ldm", "--dtype", "fp16"], "here it is called f16"),
        (["generate", "a", "--seed", "-2"], "expected a whole number from 0 on, or a new one: random or -1"),
        (["generate", "a", "--attention", "xformers"], "expected a kernel that runs on cpu; use math or sdpa"),
        (["generate", "a", "--attention", "xformers"], " or flash"),
        (["generate", "a", "--device", "cuda"], "there is no cuda device, or this PyTorch was built without"),
        (["plan", "/etc/passwd"], "/etc/passwd: this is text, not a model; give a .safetensors file"),
        (["plan", ""], "this is no name; name a file, a folder, a model or a Hub id"),
        (["inspect", " "], "this is no name"),
        (["generate", "a", "--model", ""], "this is no name"),
        (["inspect", "a.pdf"], "a.pdf: this is a PDF, not a safetensors file"),
        (["inspect", "a.ico"], "a.ico: this is an icon"),
        (["inspect", "sd15", "--trace", "--size", "1x2x3"], "expected WIDTHxHEIGHT in cells"),
        (["adapters", "explain", "mosaic", "--budget", "5 MiX"], "expected an amount of memory; such as 6GB, 512MiB"),
    ],
)  # fmt: skip
def test_the_sentence(line, words, here, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (here / "a.pdf").write_bytes(b"%PDF-1.7 and more")
    (here / "a.ico").write_bytes(b"\0\0\1\0 and more than eight bytes")
    assert words in said(line, capsys)


def test_inspect_traces_width_before_height(capsys):
    assert main(["inspect", "sd15", "--trace", "--size", "16x8"]) == 0
    assert "1×4×8×16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('["a cat", "a dog"]', 'line 1: JSON is \'["a cat", "a dog"]\', expected a line for each picture'),
        ('[{"prompt": "a cat"}]', "this is a list"),
        ('[\n  {"prompt": "a"},\n  {"prompt": "b"}\n]', "it is one JSON document over many lines"),
        ('{\n  "prompt": "a"\n}', "it is one JSON document over many lines"),
    ],
)
def test_json_that_is_no_line_for_each_picture_is_not_drawn(text, words, here, capsys):
    (here / "p.txt").write_text(text)
    assert words in said(["generate", "--prompts", "p.txt"], capsys)


@pytest.mark.parametrize("text", ["[cat] and [dog:0.5]", "[0.5]", '["unclosed', "[a cat]\n[a dog]"])
def test_brackets_of_prompts_are_no_json(text, here, monkeypatch):
    from undertow.cli.prompt_lines import tasks_of_file

    (here / "p.txt").write_text(text)
    assert [task.request.prompt for task in tasks_of_file(here / "p.txt", {})] == text.splitlines()


def test_damaged_exif_is_nobody_s_business(here, recwarn):
    """Pillow warns of it; the picture is whole."""
    exif = Image.Exif()
    exif[0x010E] = "a text that is long enough to stand by itself"
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "JPEG", exif=exif.tobytes())
    damaged = bytearray(content.getvalue())
    place = damaged.index(b"Exif\0\0") + 6
    damaged[place + 8 : place + 10] = b"\xff\xff"  # entries of its first table
    (here / "a.jpg").write_bytes(damaged)
    with pytest.warns(UserWarning, match="Corrupt EXIF data"), Image.open(here / "a.jpg") as image:
        image.getexif()
    recwarn.clear()
    assert open_picture("image", here / "a.jpg").size == (8, 8)
    assert main(["inspect", "a.jpg"]) == 0
    assert not recwarn.list


@pytest.mark.parametrize("resume", [[], ["--resume"], ["--resume-step", "3"]])
def test_a_second_training_in_a_folder_is_refused_before_anything_is_loaded(resume, here, capsys, monkeypatch):
    monkeypatch.setattr("undertow.training.pixel_models.train_pixel_model", None)
    monkeypatch.setattr("undertow.training.pixel_models.stored_config", None)
    with only_training(here / "run" / "training"):
        assert "a training runs in it (process" in said(["train", "digits", "--out", "run", *resume], capsys)


def test_an_unreachable_hub_is_asked_once(monkeypatch, capsys, here):
    """Its client would try six times, for half a minute."""
    import huggingface_hub.constants as constants

    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                asked.append(connection)
                connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(here / "hub"))
        problem = said(["plan", "owner/name"], capsys)
    assert (
        "owner/name: no such file or folder here, not whole in the local cache, and the Hub did not answer" in problem
    )
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("place", "fields", "words"),
    [
        ("unet/config.json", {"norm_num_groups": 0}, "norm_groups = 0"),
        ("unet/config.json", {"_class_name": "ControlNetModel"}, "_class_name = 'ControlNetModel'"),
        ("vae/config.json", {"norm_num_groups": 0}, "= 0"),
        ("text_encoder/config.json", {"num_attention_heads": 0}, "0"),
        ("scheduler/scheduler_config.json", {"beta_start": -1}, "-1"),
    ],
)
def test_errors_of_configs_name_the_file(place, fields, words, here, capsys):
    shutil.copytree(pipeline_folder("sd1"), here / "model")
    file = here / "model" / place
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    problem = said(["generate", "a", "--model", "model", "--no-show"], capsys)
    assert problem.startswith(f"error: model/{place}: ")
    assert words in problem


def test_the_innermost_file_is_named():
    refused = pytest.raises(ConfigError, match=r"^inner.json: a = 1: must not")
    with refused as caught, naming_file("outer.json"), naming_file("inner.json"):
        raise ConfigError("a", 1, "must not")
    assert (caught.value.field, caught.value.file.name) == ("a", "inner.json")


@pytest.mark.parametrize(
    ("provoked", "words"),
    [
        (lambda: float("x1"), "'x1' is no number"),
        (lambda: int("x1"), "'x1' is no whole number"),
        (lambda: json.loads(5000 * "9"), "a number of thousands of digits"),
        (lambda: json.loads(200_000 * "["), "brackets inside one another, too deep"),
        (lambda: [].items(), "a value is of another kind than was expected"),
        (lambda: {}["a"], "'a' is missing"),
        (lambda: json.loads("{"), "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    ],
)
def test_python_s_own_words_are_put_plainly(provoked, words):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        provoked()
    assert in_plain_words(caught.value) == words


def test_one_of_a_kind_is_one(here, capsys):
    lora = embedded_models()["emoji"] / "adapters" / "mosaic.safetensors"
    assert main(["sample", "digits-flow", "--class", "3", "--count", "1", "--steps", "1", "--out", "a.png"]) == 0
    assert "1 picture by flow_heun in 1 step: a.png" in capsys.readouterr().out
    assert main(["inspect", str(lora)]) == 0
    assert " MB" in capsys.readouterr().out


def test_a_u_net_alone_is_refused_with_what_a_command_line_can_do(capsys):
    line = ["generate", "red apple", "--model", str(pipeline_folder("sd1") / "unet"), "--no-show"]
    assert main(line) == 2
    assert "give a whole checkpoint, or in Python another one with `vae=`" in capsys.readouterr().err
