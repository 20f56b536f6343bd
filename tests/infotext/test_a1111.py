"""A1111's texts: written as the web UI parses them, and read into requests.

`WEBUI` is `re_param_code` of modules/infotext_utils.py (stable-diffusion-webui 1.10), what the tool itself reads with.
"""

import json
import re
import time
from random import Random

import pytest

from undertow import GenerationRequest
from undertow.infotext.a1111 import read_a1111
from undertow.infotext.reading import NamedFile
from undertow.infotext.settings import Infotext, format_infotext, parse_infotext, parse_settings

WEBUI = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')

MODERN = """red apple, (shiny:1.2) <lora:fruit_v2:0.8>
on a table
Negative prompt: dark, blurry
Steps: 25, Sampler: DPM++ 2M SDE, Schedule type: Karras, CFG scale: 6.5, Seed: 965400086, Size: 512x768, \
Model hash: 6ce0161689, Model: v1-5-pruned, VAE hash: 735e4c3a44, VAE: vae-ft-mse.safetensors, Clip skip: 2, \
Lora hashes: "fruit_v2: 0123456789ab, other: cdef", Version: v1.10.1"""

LINES = [
    MODERN.splitlines()[-1],
    'Steps: 20, Sampler: Euler a, CFG scale: 7, Model: "my, \\"best\\": model", Size: 512x512, Empty: , Last: x',
    "Steps: 20, garbage, Sampler: Euler a, CFG scale: 7, a: 1, ünïcode key: 猫",
    'Steps: 20, Quoted: "no end, Sampler: Euler a, CFG scale: 7',
]


def webui(line: str) -> dict[str, str]:
    """What the web UI finds in a line."""
    return {
        key: json.loads(value) if value[:1] == '"' and value[-1:] == '"' and len(value) > 1 else value
        for key, value in WEBUI.findall(line)
    }


@pytest.mark.parametrize("line", LINES)
def test_settings_are_those_that_the_web_ui_finds(line):
    assert parse_settings(line) == webui(line)


def test_any_text_is_taken_apart_as_the_web_ui_does():
    """20,000 texts of the characters that matter, and the web UI's own expression."""
    parts = ["a", "bc", "1", ":", ": ", ",", ", ", '"', '\\"', "-", "/", " ", "("]
    random = Random(0)
    for _ in range(20_000):
        line = "".join(random.choices(parts, k=random.randint(3, 18)))
        expected = {key.strip(): _unquoted(value).strip() for key, value in WEBUI.findall(line)}
        assert {key: value.strip() for key, value in parse_settings(line).items()} == expected, line


def _unquoted(value: str) -> str:
    try:
        return json.loads(value) if value[:1] == '"' and value[-1:] == '"' else value
    except ValueError:
        return value


def test_what_is_written_is_read_as_it_was_by_the_web_ui_and_here():
    settings = {"Steps": "20", "Model": 'a "b": c, d', "Lora hashes": "a: 1, b: 2", "Prompt": "two\nlines", "Seed": "1"}
    given = Infotext(prompt="red\napple", negative_prompt="dark", settings=settings)
    text = format_infotext(given)
    assert parse_infotext(text) == given
    assert webui(text.splitlines()[-1]) == settings


def test_a_modern_text_becomes_a_request():
    found = read_a1111(MODERN)
    assert (found.program, found.version) == ("A1111", "v1.10.1")
    assert found.request == {
        "prompt": "red apple, (shiny:1.2) \non a table",
        "negative_prompt": "dark, blurry",
        "steps": 25,
        "sampler": "dpmpp_2m_sde",
        "schedule": "karras",
        "guidance_scale": 6.5,
        "seed": 965400086,
        "size": [768, 512],
        "clip_skip": 2,
    }
    GenerationRequest.from_json(found.request)
    assert found.of_kind("LoRA") == [
        NamedFile(kind="LoRA", name="fruit_v2", option="--lora", hash="0123456789ab", scale=0.8)
    ]
    assert found.of_kind("model") == [NamedFile(kind="model", name="v1-5-pruned", option="--model", hash="6ce0161689")]
    assert [one.name for one in found.not_understood] == ["VAE hash", "VAE"]
    assert len(found.notes) == 1, "that the noise is another one is no setting of the text"
    assert not read_a1111(MODERN.replace("Version", "RNG: CPU, Version")).notes


@pytest.mark.parametrize(
    ("settings", "sampler", "schedule"),
    [
        ("Sampler: DPM++ 2M Karras", "dpmpp_2m", "karras"),
        ("Sampler: DPM++ SDE Karras", "dpmpp_sde", "karras"),
        ("Sampler: DPM++ 2M SDE Exponential", "dpmpp_2m_sde", "exponential"),
        ("Sampler: DPM++ 2M SDE Heun", "dpmpp_2m_sde_heun", "normal"),
        ("Sampler: DPM++ 2M SDE Heun Karras", "dpmpp_2m_sde_heun", "karras"),
        ("Sampler: DPM2 a Karras", "dpm2_a", "karras"),
        ("Sampler: Euler a", "euler_a", "normal"),
        ("Sampler: DPM++ 2M", "dpmpp_2m", "normal"),
        ("Sampler: DPM++ 2M, Version: v1.10.0", "dpmpp_2m", "karras"),
        ("Sampler: DPM++ 2M, Schedule type: Automatic, Version: v1.9.4", "dpmpp_2m", "karras"),
        ("Sampler: DPM++ 3M SDE, Schedule type: Automatic", "dpmpp_3m_sde", "exponential"),
        ("Sampler: DDIM, Schedule type: Automatic", "ddim", "ddim_comfyui"),
        ("Sampler: Restart, Schedule type: Automatic", "restart", "karras"),
        ("Sampler: Euler, Schedule type: SGM Uniform", "euler", "sgm_uniform"),
        ("Sampler: UniPC, Schedule type: Beta", "unipc", "beta_sigma"),
    ],
)
def test_samplers_and_schedules_of_every_age(settings, sampler, schedule):
    """Before version 1.9 one name said both; "Automatic" is the sampler's own (modules/sd_samplers_kdiffusion.py)."""
    found = read_a1111(f"a\nSteps: 20, CFG scale: 7, {settings}").request
    assert (found["sampler"], found["schedule"]) == (sampler, schedule)


def test_a_second_pass_takes_the_denoising_strength_else_a_picture_does():
    line = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 64x96, Denoising strength: 0.45"
    hires = read_a1111(f"a\n{line}, Hires upscale: 1.5, Hires steps: 12, Hires upscaler: Latent (nearest)")
    second = {"scale": 1.5, "strength": 0.45, "steps": 12, "upscale": "latent"}
    assert hires.request["high_resolution"] == second
    assert "strength" not in hires.request
    assert "Hires upscaler" in [one.name for one in hires.not_understood]
    GenerationRequest.from_json(hires.request)
    started = read_a1111(f"a\n{line}")
    assert (started.request["strength"], started.request["strength_convention"]) == (0.45, "a1111")
    assert [file.option for file in started.of_kind("picture")] == ["--image"]


def test_the_rest_is_listed_with_what_it_would_need():
    line = (
        "Steps: 20, Sampler: Magic, CFG scale: high, Seed: 3, Eta: 0.5, ENSD: 31337, RNG: CPU, Tiling: True, "
        "Variation seed: 9, Variation seed strength: 0.2, Refiner: xl_refiner [7440042bbd], Refiner switch at: 0.7, "
        'Civitai resources: [{"type":"checkpoint","modelVersionId":1}], Face restoration: GFPGAN'
    )
    found = read_a1111(f"<hypernet:x:1> a\n{line}")
    assert {one.name: one.value for one in found.not_understood} == {
        "hypernet": "x:1",
        "CFG scale": "high",
        "Sampler": "Magic",
        "Eta": "0.5",
        "ENSD": "31337",
        "Civitai resources": '[{"type":"checkpoint","modelVersionId":1}]',
        "Face restoration": "GFPGAN",
    }
    assert found.request["variation_seed"] == 9
    assert found.request["seamless"] == "both"
    assert found.of_kind("refiner") == [
        NamedFile(kind="refiner", name="xl_refiner", option="--refiner", hash="7440042bbd")
    ]


def test_a_sampler_s_own_options_are_taken():
    found = read_a1111("a\nSteps: 20, Sampler: Euler a, CFG scale: 7, Eta: 0.5, Sigma churn: 3")
    assert found.request["sampler_options"] == {"eta": 0.5}
    assert "Sigma churn" in [one.name for one in found.not_understood]


def test_a_text_without_settings_is_a_prompt():
    found = read_a1111("just a prompt: with a colon, and more")
    assert found.request == {"prompt": "just a prompt: with a colon, and more", "negative_prompt": ""}
    assert not found.not_understood


@pytest.mark.parametrize(
    "part",
    ["a", "a ", ":", 'a:"', 'ab: "x', "ab: [", 'ab: {"a":', "ab: [1,", "<a:", "<a:b> ", "\\", "a,", 'ab: \\"', "\n"],
)
def test_long_texts_take_as_much_longer_as_they_are(part):
    """The web UI's expression takes the square of it. A generous ratio, and the best of three, as machines stutter."""

    def seconds(length: int) -> float:
        text = "x\nSteps: 1, Seed: 2, Size: 8x8, " + part * (length // len(part))
        taken = []
        for _ in range(3):
            started = time.perf_counter()
            read_a1111(text)
            taken.append(time.perf_counter() - started)
        return min(taken)

    assert seconds(64_000) < 24 * seconds(8_000) + 0.05  # the square would be 64
