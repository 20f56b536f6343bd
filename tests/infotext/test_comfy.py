"""ComfyUI's graphs, as its API has them and its pictures carry them, read into requests."""

import json
import time
from typing import Any

import pytest

from undertow import GenerationRequest
from undertow.infotext.comfy import read_comfy
from undertow.infotext.reading import NamedFile

DEFAULT: dict[str, Any] = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 156680208700286,
            "steps": 20,
            "cfg": 8.0,
            "sampler_name": "dpmpp_2m",
            "scheduler": "karras",
            "denoise": 1.0,
            "model": ["10", 0],
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd/v1-5-pruned.ckpt"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "red (apple:1.2)", "clip": ["11", 0]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "dark", "clip": ["11", 0]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}},
    "10": {
        "class_type": "LoraLoader",
        "inputs": {
            "lora_name": "fruit.safetensors",
            "strength_model": 0.8,
            "strength_clip": 0.5,
            "model": ["4", 0],
            "clip": ["4", 1],
        },
    },
    "11": {"class_type": "CLIPSetLastLayer", "inputs": {"stop_at_clip_layer": -2, "clip": ["10", 1]}},
}


def changed(**nodes: Any) -> str:
    """The graph with inputs of some nodes replaced, by their names without the leading "n", and others added."""
    graph = json.loads(json.dumps(DEFAULT))
    for name, change in nodes.items():
        node = graph.setdefault(name[1:], {"class_type": change.get("class_type", ""), "inputs": {}})
        node["class_type"] = change.get("class_type", node["class_type"])
        node["inputs"] |= {key: value for key, value in change.items() if key != "class_type"}
    return json.dumps(graph)


def test_the_default_graph_becomes_a_request():
    found = read_comfy(json.dumps(DEFAULT))
    assert found is not None
    assert found.request == {
        "prompt": "red (apple:1.2)",
        "negative_prompt": "dark",
        "seed": 156680208700286,
        "steps": 20,
        "guidance_scale": 8.0,
        "sampler": "dpmpp_2m",
        "schedule": "karras",
        "size": [768, 512],
        "clip_skip": 2,
        "dialect": "comfy",
        "timestep_map": "nearest",
        "noise_convention": "comfy",
    }
    GenerationRequest.from_json(found.request)
    assert list(found.files) == [
        NamedFile(kind="LoRA", name="fruit.safetensors", option="--lora", scale=0.8),
        NamedFile(kind="model", name="sd/v1-5-pruned.ckpt", option="--model"),
    ]
    assert [one.name for one in found.not_understood] == ["LoraLoader 10.strength_clip"]


def test_a_picture_that_was_started_from_is_asked_for():
    graph = changed(
        n3={"latent_image": ["12", 0], "denoise": 0.6},
        n12={"class_type": "VAEEncode", "pixels": ["13", 0], "vae": ["4", 2]},
        n13={"class_type": "LoadImage", "image": "photo.png"},
    )
    found = read_comfy(graph)
    assert found is not None
    assert (found.request["strength"], found.request["strength_convention"]) == (0.6, "comfy")
    assert found.of_kind("picture") == [NamedFile(kind="picture", name="photo.png", option="--image")]
    assert "size" not in found.request


def test_seeds_and_texts_of_other_nodes_are_followed():
    graph = changed(
        n3={"seed": ["14", 0]},
        n14={"class_type": "Seed (rgthree)", "seed": 7},
        n6={"text": ["15", 0]},
        n15={"class_type": "Reroute", "value": ["16", 0]},
        n16={"class_type": "PrimitiveString", "value": "a pear"},
    )
    found = read_comfy(graph)
    assert found is not None
    assert (found.request["seed"], found.request["prompt"]) == (7, "a pear")


SECOND = DEFAULT["3"]["inputs"] | {"latent_image": ["18", 0], "denoise": 0.5, "steps": 9, "class_type": "KSampler"}


@pytest.mark.parametrize(
    ("nodes", "scale", "upscale", "listed"),
    [
        ({"n18": {"class_type": "LatentUpscaleBy", "samples": ["3", 0], "scale_by": 1.5, "upscale_method": "bilinear"}},
         1.5, "latent", []),
        ({"n18": {"class_type": "LatentUpscale", "samples": ["3", 0], "width": 1024, "height": 1536,
                  "upscale_method": "nearest-exact"}},
         2.0, "latent", ["LatentUpscale 18.upscale_method"]),
        ({"n17": SECOND | {"cfg": 5.0, "seed": 3, "positive": ["7", 0]},
          "n18": {"class_type": "VAEEncode", "pixels": ["19", 0]},
          "n19": {"class_type": "ImageScaleBy", "image": ["20", 0], "scale_by": 1.25, "upscale_method": "lanczos"},
          "n20": {"class_type": "VAEDecode", "samples": ["3", 0]}},
         1.25, "pixels", ["KSampler 17.seed", "KSampler 17.cfg", "KSampler 17.positive"]),
    ],
)  # fmt: skip
def test_a_second_pass_over_a_larger_picture_is_read(nodes, scale, upscale, listed):
    found = read_comfy(changed(**{"n17": SECOND, **nodes, "n8": {"samples": ["17", 0]}}))
    assert found is not None
    assert found.request["steps"] == 20
    assert found.request["high_resolution"] == {"scale": scale, "strength": 0.5, "steps": 9, "upscale": upscale}
    assert found.request["strength_convention"] == "comfy"
    GenerationRequest.from_json(found.request)
    assert [one.name for one in found.not_understood][1:] == listed


REFINED: dict[str, Any] = {
    "n3": {"class_type": "KSamplerAdvanced", "noise_seed": 5, "start_at_step": 0, "end_at_step": 16},
    "n17": DEFAULT["3"]["inputs"]
    | {"class_type": "KSamplerAdvanced", "noise_seed": 0, "start_at_step": 16, "end_at_step": 10000}
    | {"model": ["21", 0], "latent_image": ["3", 0]},
    "n21": {"class_type": "CheckpointLoaderSimple", "ckpt_name": "refiner.safetensors"},
    "n8": {"samples": ["17", 0]},
}


def test_the_last_steps_of_another_model_are_a_refiner_s():
    """As in ComfyUI's example of SDXL: 16 of 20 steps by the base model."""
    found = read_comfy(changed(**REFINED))
    assert found is not None
    assert (found.request["steps"], found.request["seed"], found.request["refiner_switch"]) == (20, 5, 0.8)
    assert NamedFile(kind="refiner", name="refiner.safetensors", option="--refiner") in found.files
    assert [one.name for one in found.not_understood] == ["LoraLoader 10.strength_clip"]


@pytest.mark.parametrize(
    "nodes",
    [
        {"n17": SECOND, "n18": {"class_type": "LatentUpscaleBy", "samples": ["3", 0], "scale_by": 0.5}},
        {"n17": SECOND, "n18": {"class_type": "LatentFlip", "samples": ["3", 0]}},
        {"n17": SECOND, "n18": {"class_type": "LatentUpscale", "samples": ["3", 0], "width": 1024, "height": 1024}},
        {**REFINED, "n21": {"class_type": "CheckpointLoaderSimple", "ckpt_name": "sd/v1-5-pruned.ckpt"}},
        {**REFINED, "n3": {**REFINED["n3"], "end_at_step": 12}},
    ],
)
def test_another_pass_is_listed(nodes):
    found = read_comfy(changed(**nodes, **({} if "n8" in nodes else {"n8": {"samples": ["17", 0]}})))
    assert found is not None
    listed = {one.name: one.value for one in found.not_understood}
    title = f"{nodes['n17']['class_type']} 17"
    assert listed[title] == f"{nodes['n17']['steps']} steps"
    assert ("KSamplerAdvanced 3.start_at_step, end_at_step" in listed) == ("n3" in nodes)


@pytest.mark.parametrize(
    ("nodes", "listed"),
    [
        ({"n3": {"sampler_name": "mystery"}}, "sampler_name"),
        ({"n3": {"scheduler": "mystery"}}, "scheduler"),
        ({"n5": {"batch_size": 4}}, "batch_size"),
        ({"n3": {"steps": "many"}}, "KSampler 3.steps"),
        ({"n3": {"class_type": "KSamplerAdvanced", "noise_seed": 1, "start_at_step": 5}}, "start_at_step"),
        ({"n3": {"model": ["20", 0]}, "n20": {"class_type": "FreeU", "model": ["10", 0]}}, "FreeU 20"),
        (
            {"n3": {"positive": ["21", 0]}, "n21": {"class_type": "ControlNetApply", "conditioning": ["6", 0]}},
            "positive: ControlNetApply 21",
        ),
    ],
)
def test_what_has_no_part_in_the_request_is_listed(nodes, listed):
    found = read_comfy(changed(**nodes))
    assert found is not None
    assert listed in " ".join(one.name for one in found.not_understood)
    assert found.request["prompt"] == "red (apple:1.2)"


def test_graphs_without_a_sampler_or_with_circles_end():
    none = read_comfy('{"1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}}}')
    assert none is not None
    assert [(one.name, one.value) for one in none.not_understood] == [("nodes", "LoadImage")]
    circle = read_comfy(changed(n4={"class_type": "Reroute", "model": ["10", 0]}, n10={"model": ["4", 0]}))
    assert circle is not None
    value = read_comfy(changed(n3={"seed": ["14", 0]}, n14={"class_type": "Reroute", "value": ["14", 0]}))
    assert value is not None
    assert "seed" not in value.request
    for text in ("", "[1]", "{}", '{"1": 2}', "[" * 100_000, "nonsense"):
        assert read_comfy(text) is None


def test_a_large_graph_takes_as_much_longer_as_it_is():
    def seconds(count: int) -> float:
        graph = {str(n): {"class_type": "Reroute", "inputs": {"model": [str(n + 1), 0]}} for n in range(100, count)}
        text = json.dumps({**DEFAULT, **graph, "3": changed_sampler()})
        started = time.process_time()
        read_comfy(text)
        return time.process_time() - started

    def changed_sampler() -> dict[str, Any]:
        return {"class_type": "KSampler", "inputs": DEFAULT["3"]["inputs"] | {"model": ["100", 0]}}

    few, many = (min(seconds(count) for _ in range(3)) for count in (1000, 8000))  # one may meet a garbage collection
    assert many < 24 * few + 0.1
