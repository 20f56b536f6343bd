"""A picture's description: A1111's text for other tools, JSON that repeats it."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file
from torch import ones

from undertow import Adapter, AdapterStack, HighResolution, Region
from undertow.engine.a1111_text import a1111_text
from undertow.engine.computing import Computing, Slots
from undertow.engine.description_json import description_json
from undertow.engine.metadata import JSON_KEY, read_description, read_stored, read_texts
from undertow.engine.report import Report, UsedAdapter, UsedFiles
from undertow.engine.request import GenerationRequest
from undertow.engine.saving import name_fields, save_picture
from undertow.errors import InvalidInput
from undertow.infotext.a1111 import read_a1111
from undertow.pictures.files import describe_picture, open_picture


def report(**settings):
    names = {"sampler": "dpmpp_2m", "schedule": "karras"}
    request = GenerationRequest(**{"prompt": "a (red:1.2) apple", "seed": 7, "count": 3} | names | settings)
    drawn = {"sampler": request.sampler, "schedule": str(request.schedule)}
    return Report(request=request, model="emoji", size=(64, 96), sigmas=(1.0, 0.0), seconds={}, **drawn)


@pytest.fixture
def files(tmp_path) -> UsedFiles:
    """A model, two LoRAs and a ControlNet in a folder whose name nobody needs to know."""
    folder = tmp_path / "home" / "joe"
    folder.mkdir(parents=True)
    for name in ("dream", "style", "lines"):
        save_file({name: ones(2)}, folder / f"{name}.safetensors")
    (folder / "old.bin").write_bytes(b"pickled")
    adapters = (
        UsedAdapter(title="style", kind="LoRA", path=folder / "style.safetensors"),
        UsedAdapter(title="my old one", kind="LoRA", path=folder / "old.bin"),
        UsedAdapter(title="lines", kind="ControlNet", path=folder / "lines.safetensors"),
    )
    return UsedFiles(model=folder / "dream.safetensors", adapters=adapters)


def test_the_text_is_a1111_s_infotext():
    """In its spelling and order (modules/processing.py, create_infotext)."""
    text = a1111_text(report(negative_prompt="blurry, dark", guidance_scale=7.5), index=2)

    assert text == (
        "a (red:1.2) apple\nNegative prompt: blurry, dark\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, "
        "CFG scale: 7.5, Seed: 9, Size: 96x64, Model: emoji, RNG: CPU, Version: undertow"
    )


def test_where_sigmas_take_the_place_of_steps_those_that_were_drawn_are_told():
    drawn = report(sigmas=(14.0, 5.0, 1.0, 0.0), schedule=None, size=(64, 96))
    assert "\nSteps: 3, Sampler: DPM++ 2M, CFG scale" in a1111_text(drawn, 0)
    assert json.loads(description_json(drawn, 0))["request"]["steps"] == 3
    assert name_fields(drawn, 0)["steps"] == 3


def test_models_and_loras_are_named_by_a1111_s_hashes(files):
    drawn = report(
        sampler="euler_a",
        schedule="sgm_uniform",
        adapters=(
            Adapter("style", scale=0.8),
            Adapter("old.bin", name="my old one", scale=(1.0, 0.0)),
            Adapter("lines"),
        ),
    )
    text = a1111_text(replace(drawn, model="dream", files=files), index=0)
    whole = hashlib.sha256(files.model.read_bytes()).hexdigest()
    tensors = hashlib.sha256(ones(2).numpy().tobytes()).hexdigest()
    pickled = hashlib.sha256(b"pickled").hexdigest()
    assert text.startswith("a (red:1.2) apple <lora:style:0.8> <lora:my old one:1>\nSteps: 20, Sampler: Euler a, ")
    assert f"Model hash: {whole[:10]}, Model: dream, " in text
    assert f'Lora hashes: "style: {tensors[:12]}, my old one: {pickled[:12]}", Version' in text
    assert "lines" not in text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"clip_skip": 2}, "Clip skip: 2, "),
        ({"seamless": "both"}, "Tiling: True, "),
        ({"image": Image.new("RGB", (96, 64)), "strength": 0.6}, "Denoising strength: 0.6, "),
        (
            {"variation_seed": 5, "variation_strength": 0.25},
            "Variation seed: 6, Variation seed strength: 0.25, ",
        ),
        (
            {"high_resolution": HighResolution(scale=1.5, strength=0.4, steps=9), "size": (48, 72)},
            "Size: 72x48, Model: emoji, Denoising strength: 0.4, RNG: CPU, Hires upscale: 1.5, Hires steps: 9, "
            "Hires upscaler: Lanczos, ",
        ),
        ({"high_resolution": HighResolution(scale=2.0, upscale="latent")}, "Hires upscaler: Latent, "),
        ({"high_resolution": HighResolution(scale=2.0)}, "Size: 48x32, "),
        ({"sampler": "sa_solver", "schedule": "kl_optimal"}, "Sampler: sa_solver, Schedule type: kl_optimal, "),
    ],
)
def test_what_was_chosen_is_told_in_a1111_s_words(settings, said):
    assert said in a1111_text(report(**settings), index=1)
    for name in ("Clip skip", "Tiling", "Denoising", "Hires", "Variation", "hashes"):
        assert name not in a1111_text(report(), index=0)


def test_the_text_of_a_picture_gives_its_request_back():
    drawn = report(
        negative_prompt="dark",
        sampler="dpmpp_2m_sde",
        schedule="exponential",
        size=(64, 96),
        clip_skip=2,
        variation_seed=5,
        variation_strength=0.25,
        seamless="both",
        high_resolution=HighResolution(scale=1.5, strength=0.4, steps=9, upscale="latent"),
    )
    read = read_a1111(a1111_text(drawn, index=0))
    assert not read.not_understood
    assert GenerationRequest.from_json(read.request) == replace(drawn.request, count=1)


def test_values_with_separators_are_quoted_as_a1111_does():
    text = a1111_text(Report(**{**vars(report()), "model": 'my, "best": model'}), index=0)
    assert 'Model: "my, \\"best\\": model"' in text


def test_a_saved_picture_tells_how_to_repeat_it(tmp_path):
    original = report(negative_prompt="ünïcode 猫", size=(64, 96), clip_skip=1)
    path = save_picture(Image.new("RGB", (96, 64)), tmp_path / "new" / "cat.png", original, index=1)

    origin = read_description(path)

    assert (origin.request, origin.index, origin.model) == (original.request, 1, "emoji")
    with Image.open(path) as image:
        assert image.info["parameters"] == a1111_text(original, 1)


def test_a_request_without_a_size_is_repeated_at_the_size_it_had(tmp_path):
    assert read_description(save_picture(Image.new("RGB", (96, 64)), tmp_path / "a.png", report())).request.size == (
        64,
        96,
    )


def test_a_failed_write_leaves_the_old_picture_and_no_draft(tmp_path, monkeypatch):
    path = save_picture(Image.new("RGB", (4, 4), "red"), tmp_path / "a.png", report())
    before = path.read_bytes()

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("undertow.checkpoints.files.atomic.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_picture(Image.new("RGB", (4, 4), "blue"), path, report())

    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_a_second_pass_is_repeated_from_the_size_of_the_first(tmp_path):
    """It was repeated from the enlarged size, and enlarged again."""
    drawn = report(size=(32, 48), high_resolution=HighResolution(scale=2.0))
    path = save_picture(Image.new("RGB", (96, 64)), tmp_path / "a.png", drawn)
    assert read_description(path).request == drawn.request


def test_a_picture_does_not_say_where_files_lie(tmp_path, files):
    home = files.model.parent
    image = Image.new("RGB", (8, 8), "red")
    for name in ("photo.png", "map.png", "mask.png"):
        image.save(home / name)
    inner = Adapter(home / "lines.safetensors", image=home / "map.png", encoder=home / "encoder")
    drawn = report(
        image=open_picture("image", home / "photo.png"),
        adapters=AdapterStack((Adapter(home / "style.safetensors"), Adapter("owner/name"))),
        regions=(Region(prompt="b", box=(0, 0, 1, 1), adapters=(replace(inner, mask=(home / "mask.png",)),)),),
    )
    path = save_picture(image, tmp_path / "a.png", replace(drawn, model="dream", files=files))
    assert b"joe" not in path.read_bytes()
    stored = json.loads(read_texts(path)[JSON_KEY])
    assert (stored["model"], stored["model_hash"]) == (
        "dream",
        a1111_text(replace(drawn, files=files), 0).split("Model hash: ")[1][:10],
    )
    style, hub = stored["request"]["adapters"]["adapters"]
    assert (style["source"], hub["source"]) == ("style.safetensors", "owner/name")
    (lines,) = stored["request"]["regions"][0]["adapters"]
    assert (lines["source"], lines["encoder"]) == ("lines.safetensors", "encoder")
    assert "png" in lines["image"]
    assert "png" in lines["mask"][0]
    assert stored["request"]["image"].keys() == {"size", "sha256", "png"}


def crafted(folder: Path, **changes) -> Path:
    """A picture whose request was changed by a stranger."""
    path = save_picture(Image.new("RGB", (8, 8)), folder / "crafted.png", report())
    stored = json.loads(read_texts(path)[JSON_KEY])
    stored["request"] |= changes
    info = Image.Exif()
    info[0xFE55] = b"undertow\0" + json.dumps({JSON_KEY: json.dumps(stored)}).encode()
    Image.new("RGB", (8, 8)).save(folder / "crafted.webp", exif=info.tobytes())
    return folder / "crafted.webp"


@pytest.mark.parametrize(
    ("changes", "listed"),
    [
        ({"adapters": [{"source": "/etc/shadow"}]}, r"adapter 'shadow' at 1 \(--lora or --adapter\)"),
        ({"adapters": [{"source": "owner/private", "scale": 0.5}]}, "adapter 'private' at 0.5"),
        ({"adapters": {"adapters": [{"source": "style.ckpt"}]}}, "adapter 'style.ckpt'"),
        ({"adapters": "/etc/shadow"}, "adapter 'shadow'"),
        ({"embeddings": ["style"]}, r"textual inversion 'style' \(--embedding\)"),
        ({"adapters": ["/etc/shadow"]}, "adapter 'shadow'"),
        ({"adapters": {"adapters": ["/etc/shadow"]}}, "adapter 'shadow'"),
        ({"adapters": [{"source": "mosaic", "encoder": "owner/encoder"}]}, "image encoder 'encoder'"),
        ({"adapters": [{"source": "mosaic", "image": "SECRET"}]}, r"image of mosaic 'secret.png' \(--adapter NAME"),
        ({"adapters": [{"source": "mosaic", "mask": [{"file": "SECRET"}]}]}, "mask of mosaic 'secret.png'"),
        ({"regions": [{"prompt": "", "box": [0, 0, 1, 1], "adapters": [{"source": "/dev/zero"}]}]}, "adapter 'zero'"),
        ({"image": "SECRET"}, r"image 'secret.png' \(--image\)"),
        ({"image": {"file": "SECRET"}}, r"image 'secret.png' \(--image\)"),
        (
            {"image": {"size": [8, 8], "sha256": "0", "file": "SECRET"}, "depth": "C:\\x\\map.png"},
            "image 'secret.png' .*; depth 'map.png'",
        ),
        ({"image": {"size": [8, 4], "sha256": "0"}}, r"image '8x4' \(--image\)"),
    ],
)
def test_a_picture_gives_no_orders(tmp_path, monkeypatch, changes, listed):
    """It opened any path, any Hub id and any picture that its description named."""
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    path = crafted(tmp_path, **json.loads(json.dumps(changes).replace("SECRET", str(secret))))
    opened = []
    monkeypatch.setattr(Path, "open", lambda self, *_, **__: opened.append(self))
    monkeypatch.setattr("undertow.pictures.files.open_picture", lambda *_: pytest.fail("a picture was opened"))
    monkeypatch.setattr("undertow.pictures.fields.open_picture", lambda *_: pytest.fail("a picture was opened"))
    with pytest.raises(InvalidInput, match=f"a picture opens none by itself; give {listed}"):
        read_description(path, bundled=("mosaic",))
    assert not opened


def test_what_is_given_takes_the_place_of_what_is_named(tmp_path):
    path = crafted(tmp_path, adapters=[{"source": "/etc/shadow"}], image="secret.png")
    photo = Image.new("RGB", (8, 8), "red")
    found = read_description(path, {"adapters": (Adapter("own"),), "image": photo}).request
    assert found.adapters == (Adapter("own"),)
    assert found.image is photo
    embedded = crafted(tmp_path, embeddings=["style"])
    assert read_description(embedded, {"embeddings": ("own",)}).request.embeddings == ("own",)
    described = crafted(tmp_path, image=describe_picture(photo))
    assert read_description(described, {"image": photo}).request.image is photo


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", "[" * 100_000, '{"request": [], "index": 0, "model": "m"}', '{"request": {"prompt": ""}}'],
)
def test_a_damaged_description_is_refused(tmp_path, content):
    with pytest.raises(InvalidInput, match="expected an unchanged description; it is damaged"):
        read_stored(tmp_path / "a.png", {JSON_KEY: content})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index": 5}, "expected one of 3; its description is damaged"),
        ({"index": 1.5}, "its index or model is none"),
        ({"model": 7}, "its index or model is none"),
        ({"request": {"prompt": "", "seed": 1.5}}, "seed"),
        ({"request": {"prompt": "", "adapters": "abc"}}, "give adapter 'abc'"),
        ({"request": {"prompt": "", "adapters": 3}}, "adapters"),
        ({"request": {"prompt": "", "regions": [3], "image": [2]}}, "regions|image"),
    ],
)
def test_values_of_other_types_are_refused_by_name(tmp_path, changes, message):
    stored = {"request": GenerationRequest(prompt="", count=3).to_json(), "index": 0, "model": "m"} | changes
    with pytest.raises(InvalidInput, match=message):
        read_stored(tmp_path / "a.png", {JSON_KEY: json.dumps(stored)}).description()


def test_pictures_that_others_wrote_and_files_that_are_none_are_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("hello")
    for name, expected in (
        ("plain.png", "a picture that undertow wrote"),
        ("text.png", "it is none of these"),
        ("missing.png", "there is no such file"),
    ):
        with pytest.raises(InvalidInput, match=expected):
            read_description(tmp_path / name)


@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"steps": 0}, "steps"),
        ({"count": 0}, "count"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"guidance_scale": float("inf")}, "guidance_scale"),
        ({"clip_skip": 0}, "clip_skip"),
    ],
)
def test_impossible_requests_are_refused_by_field(settings, argument):
    with pytest.raises(InvalidInput) as refusal:
        GenerationRequest(prompt="x", **settings)
    assert refusal.value.argument == argument


def test_an_empty_prompt_is_allowed_and_unknown_fields_are_not():
    assert GenerationRequest.from_json({"prompt": ""}).prompt == ""
    with pytest.raises(InvalidInput, match="cfg"):
        GenerationRequest.from_json({"prompt": "", "cfg": 7})


def test_what_was_chosen_of_the_model_is_carried_and_an_old_picture_says_nothing(tmp_path):
    """Pictures in bfloat16 or by OpenVINO were drawn again otherwise, and nothing said so."""
    chosen = Computing(precision="bf16", quantize={"unet.*": "int8-weights"}, slots=Slots(slots=2, per_row=2))
    path = save_picture(Image.new("RGB", (8, 8)), tmp_path / "a.png", replace(report(), computing=chosen))
    stored = read_texts(path)[JSON_KEY]
    assert json.loads(stored)["computing"].keys() == {"precision", "quantize", "slots"}
    assert read_stored(path).computing == read_description(path).computing == chosen
    assert str(chosen) == '--precision bf16 --quantize {"unet.*": "int8-weights"} --adapter-slots 2'
    old = json.loads(stored)
    old.pop("computing")
    assert read_stored(path, {JSON_KEY: json.dumps(old)}).computing is None
    newer = old | {"computing": {"precision": "f16", "invented_later": 1}}
    assert read_stored(path, {JSON_KEY: json.dumps(newer)}).computing == Computing(precision="f16")


@pytest.mark.parametrize(
    "computing",
    [3, {"precision": "f8"}, {"slots": {"slots": 10**9, "per_row": 1}}, {"attention": "x"}, {"prediction": "luck"}],
)
def test_what_no_model_can_be_loaded_with_is_damaged(tmp_path, computing):
    stored = {"request": {"prompt": ""}, "index": 0, "model": "m", "computing": computing}
    with pytest.raises(InvalidInput, match="it is damaged \\(its computing"):
        read_stored(tmp_path / "a.png", {JSON_KEY: json.dumps(stored)})
