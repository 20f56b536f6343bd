"""Pictures that A1111 and ComfyUI wrote, repeated and inspected; and what a picture may not order."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.ExifTags import IFD, Base
from PIL.PngImagePlugin import PngInfo

from tests.infotext.test_comfy import changed
from tests.services import pipeline_folder
from undertow.cli import main

SETTINGS = "Steps: 2, Sampler: Euler a, Schedule type: Karras, CFG scale: 2, Seed: 7, Size: 32x48, "
TEXT = (
    "red apple <lora:mosaic:0.5> <lora:fruit:0.8>\nNegative prompt: dark\n"
    f'{SETTINGS}Model hash: 6ce0161689, Model: v1-5, Lora hashes: "fruit: 0123456789ab", ENSD: 31337, Version: v1.10.1'
)
SAME = ("--steps", "2", "--sampler", "euler_a", "--schedule", "karras", "--guidance", "2", "--size", "32x48")
HERE = ("--precision", "f32", "--no-show")


@pytest.fixture(scope="module")
def folder() -> str:
    return str(pipeline_folder("sd1"))


def written(path: Path, **texts: str) -> str:
    """A picture with texts, in PNG's chunks or where A1111 keeps them in EXIF."""
    image = Image.new("RGB", (32, 48))
    if path.suffix == ".png":
        info = PngInfo()
        for name, text in texts.items():
            info.add_text(name, text)
        image.save(path, pnginfo=info)
    else:
        exif = Image.Exif()
        exif.get_ifd(IFD.Exif)[Base.UserComment] = b"UNICODE\0" + texts["parameters"].encode("utf-16-be")
        image.save(path, exif=exif)
    return str(path)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    found = capsys.readouterr()
    return " ".join((found.out + found.err).split())


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image, dtype=int)


@pytest.mark.parametrize("name", ["a1111.png", "a1111.jpg", "a1111.webp"])
def test_a1111_s_picture_is_drawn_from_its_text(folder, tmp_path, capsys, name):
    picture, again, own = written(tmp_path / name, parameters=TEXT), tmp_path / "again.png", tmp_path / "own.png"
    assert main(["generate", "--from", picture, "--model", folder, "--out", str(again), *HERE]) == 0
    printed = said(capsys)
    assert "note: drawn without LoRA 'fruit' at 0.8 (hash 0123456789ab); --lora FILE takes it" in printed
    assert "not understood of A1111's description: 'ENSD: 31337'; seeds have no offset" in printed
    assert "drawn by a model with the hash 6ce0161689; this one has" in printed
    command = ["generate", "red apple", "--negative", "dark", "--seed", "7", *SAME, "--model", folder, *HERE]
    assert main([*command, "--out", str(own)]) == 0
    assert np.array_equal(pixels(again), pixels(own))


def test_a_lora_of_the_same_name_with_other_contents_is_noted(tmp_path, capsys):
    text = 'owl <lora:mosaic:0.5>\nSteps: 1, Seed: 7, Size: 64x64, Model: emoji, Lora hashes: "mosaic: HASH"'
    for digits, noted in (("123456789012", True), ("c966338794d9", False)):
        picture = written(tmp_path / f"{digits}.png", parameters=text.replace("HASH", digits))
        assert main(["generate", "--from", picture, "--no-show", "--out", str(tmp_path / f"{digits}-again.png")]) == 0
        told = "drawn with LoRA 'mosaic' at 0.5 (hash 123456789012); the model's own of that name has the hash"
        assert (told in said(capsys)) == noted


def test_an_adapter_that_is_added_leaves_the_loras_in_place(tmp_path):
    """They were lost, and nothing said so."""
    picture = written(
        tmp_path / "a.png", parameters="owl <lora:mosaic:0.5>\nSteps: 1, Seed: 7, Size: 64x64, Model: emoji"
    )
    Image.new("RGB", (64, 64)).save(tmp_path / "map.png")
    for name, typed in (("added", ()), ("listed", ("--lora", "line-drawing"))):
        out = str(tmp_path / f"{name}.png")
        control = f"edges={tmp_path / 'map.png'}"
        assert main(["generate", "--from", picture, "--adapter", control, *typed, "--no-show", "--out", out]) == 0
        with Image.open(out) as image:
            assert ("<lora:mosaic:0.5>" in image.info["parameters"]) == (name == "added")


def test_comfyui_s_picture_is_drawn_from_its_graph(folder, tmp_path, capsys):
    graph = changed(
        n3={"steps": 2, "cfg": 2.0, "sampler_name": "euler_ancestral", "scheduler": "karras", "seed": 7},
        n5={"width": 32, "height": 48},
        n11={"stop_at_clip_layer": -1},
    )
    picture, again, own = written(tmp_path / "comfy.png", prompt=graph), tmp_path / "again.png", tmp_path / "own.png"
    assert main(["generate", "--from", picture, "--model", folder, "--steps", "3", "--out", str(again), *HERE]) == 0
    assert "drawn without LoRA 'fruit.safetensors'" in said(capsys)
    with Image.open(again) as image:
        text = image.info["parameters"]
    assert "Steps: 3, Sampler: Euler a, Schedule type: Karras, CFG scale: 2, Seed: 7, Size: 32x48" in text
    assert text.startswith("red (apple:1.2)\nNegative prompt: dark\n")
    assert not own.exists()


def test_what_another_program_needs_is_asked_for(tmp_path, capsys):
    started = written(tmp_path / "started.png", parameters=f"a\n{SETTINGS}Denoising strength: 0.4, Model: dream")
    assert main(["generate", "--from", started]) == 2
    assert "give picture 'it started from' (--image); model 'dream' (--model)" in said(capsys)
    plain = written(tmp_path / "plain.png")
    assert main(["generate", "--from", plain]) == 2
    assert "expected one that undertow, A1111, ComfyUI or InvokeAI described; it holds no description" in said(capsys)
    other = written(tmp_path / "other.png", invokeai_metadata="{}")
    assert main(["generate", "--from", other]) == 2
    assert "its description is of InvokeAI" in said(capsys)


def test_texts_behind_the_pixels_and_in_gif_files_are_found(tmp_path, capsys):
    picture = Path(written(tmp_path / "a.png", parameters=TEXT))
    content = picture.read_bytes()
    start = content.index(b"tEXt") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    last = content.index(b"IEND") - 4
    picture.write_bytes(content[:start] + content[end:last] + content[start:end] + content[last:])
    Image.new("P", (8, 8)).save(tmp_path / "a.gif", comment=TEXT.encode())
    for name in ("a.png", "a.gif"):
        assert main(["inspect", str(tmp_path / name)]) == 0
        assert "described by A1111 v1.10.1" in said(capsys)


def test_a_model_in_a_configured_folder_is_taken_by_its_name_alone(folder, tmp_path, capsys, monkeypatch):
    config = tmp_path / "undertow.toml"
    config.write_text(f"folders = [{json.dumps(str(Path(folder).parent))}]")
    monkeypatch.setenv("UNDERTOW_CONFIG", str(config))
    named = written(tmp_path / "named.png", parameters=f"a\n{SETTINGS}Model: {Path(folder).name}, Version: v1.10.1")
    assert main(["generate", "--from", named, "--out", str(tmp_path / "again.png"), *HERE]) == 0
    placed = written(tmp_path / "placed.png", parameters=f"a\n{SETTINGS}Model: {folder}, Version: v1.10.1")
    capsys.readouterr()
    assert main(["generate", "--from", placed]) == 2
    assert "(--model)" in said(capsys)


def test_a_picture_that_names_no_model_says_so_and_asks_for_one(tmp_path, capsys):
    picture = written(
        tmp_path / "a.png", parameters="owl\nSteps: 4, Sampler: Euler a, CFG scale: 7, Seed: 42, Size: 64x64"
    )
    assert main(["inspect", picture]) == 0
    assert f"repeat: undertow generate --from {picture} --model FILE" in said(capsys)
    assert main(["generate", "--from", picture]) == 2
    assert "give a model, of which it says no name (--model)" in said(capsys)


def test_values_that_no_request_may_have_are_listed(tmp_path, capsys):
    """Held against the request's own fields, whoever wrote them: no error about an option that nobody typed."""
    wrong = "Steps: 0, Sampler: Magic, CFG scale: nan, Seed: -1, Clip skip: 0, Size: 64x64, Model: emoji"
    picture = written(tmp_path / "wrong.png", parameters=f"owl\n{wrong}")
    assert main(["generate", "--from", picture, "--steps", "1", "--no-show", "--out", str(tmp_path / "a.png")]) == 0
    printed = said(capsys)
    for part in (
        "'steps: 0'; steps would have to be at least 1",
        "'Sampler: Magic'; no sampler of this name is known",
        "'CFG scale: nan'; it is no number",
        "'Seed: -1'; it asks for any seed",
        "'clip skip: 0'; clip_skip would have to be at least 1",
        "note: A1111 draws noise by the GPU's generator",
    ):
        assert part in printed, part
    assert printed.count("the picture will be another one") == 1
    assert main(["inspect", picture]) == 0
    assert "clip skip 0 (clip_skip would have to be at least 1)" in said(capsys)


def test_invokeai_s_picture_is_drawn_from_its_metadata(tmp_path, capsys):
    metadata = {"positive_prompt": "owl", "steps": 1, "seed": 7, "width": 64, "height": 64, "scheduler": "euler_k",
                "model": {"name": "emoji"}, "cfg_scale": 2.0, "app_version": "6.10.0"}  # fmt: skip
    picture = written(tmp_path / "invoke.png", invokeai_metadata=json.dumps(metadata))
    again, own = tmp_path / "again.png", tmp_path / "own.png"
    assert main(["generate", "--from", picture, "--no-show", "--out", str(again)]) == 0
    command = "owl --steps 1 --seed 7 --size 64x64 --sampler euler --schedule karras --guidance 2 --dialect compel"
    assert main(["generate", *command.split(), "--no-show", "--out", str(own)]) == 0
    assert np.array_equal(pixels(again), pixels(own))
    capsys.readouterr()
    assert main(["inspect", picture]) == 0
    assert "described by InvokeAI 6.10.0" in said(capsys)


def test_inspect_says_what_was_understood_and_how_to_repeat_it(tmp_path, capsys):
    picture = written(tmp_path / "a1111.png", parameters=TEXT)
    assert main(["inspect", picture]) == 0
    printed = said(capsys)
    for part in (
        "PNG, 32x48 described by A1111 v1.10.1",
        "sampler euler_a schedule karras",
        "LoRA 'fruit' at 0.8 (hash 0123456789ab)",
        "not understood ENSD 31337 (seeds have no offset)",
        f"repeat: undertow generate --from {picture} --lora FILE@0.5 --lora FILE@0.8 --model FILE",
    ):
        assert part in printed, part
    assert main(["inspect", written(tmp_path / "comfy.png", prompt=changed())]) == 0
    assert "described by ComfyUI" in said(capsys)
    assert main(["inspect", written(tmp_path / "plain.png")]) == 0
    assert "described by nobody" in said(capsys)


def test_inspect_shows_a_picture_of_our_own_and_no_escape_sequences(folder, tmp_path, capsys):
    out = tmp_path / "own.png"
    prompt = "red \x1b[31mapple"
    assert main(["generate", prompt, "--seed", "7", *SAME, "--model", folder, "--out", str(out), *HERE]) == 0
    capsys.readouterr()
    assert main(["inspect", str(out)]) == 0
    found = capsys.readouterr().out
    assert "\x1b[31m" not in found
    printed = " ".join(found.split())
    for part in ("described by undertow", "steps 2", "sampler euler_a", f"--from {out} --model FILE"):
        assert part in printed, part
    assert "strength_convention" not in printed, "what is as always is left out"


@pytest.mark.parametrize("ordered", ["/etc/shadow", "owner/private", "style.ckpt"])
def test_a_picture_s_orders_are_listed_and_not_followed(tmp_path, capsys, monkeypatch, ordered):
    for place in ("huggingface_hub.snapshot_download", "huggingface_hub.hf_hub_download"):
        monkeypatch.setattr(place, lambda *_, **__: pytest.fail("the Hub was asked"))
    stored = {"request": {"prompt": "", "adapters": [{"source": ordered}]}, "index": 0, "model": ordered}
    picture = written(tmp_path / "order.png", undertow=json.dumps(stored))
    assert main(["generate", "--from", picture]) == 2
    printed = said(capsys)
    assert "because a picture opens none by itself; give model" in printed
    assert f"adapter {ordered.rpartition('/')[2]!r} at 1 (--lora or --adapter)" in printed
    assert main(["inspect", picture]) == 0
