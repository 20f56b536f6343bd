"""Hugging Face's text-to-image task (huggingface.js, packages/tasks): a prompt in, a picture's bytes out."""

from io import BytesIO

import pytest
from PIL import Image

from undertow import InvalidInput
from undertow.serving.api.compatible.huggingface import TextToImageTask, accepted_format


def test_a_task_in_our_words():
    parameters = {
        "negative_prompt": "red",
        "width": 512,
        "height": 768,
        "num_inference_steps": 9,
        "guidance_scale": 3.5,
        "scheduler": "EulerAncestralDiscreteScheduler",
        "seed": 4,
    }
    asked = TextToImageTask.from_json({"inputs": "owl", "parameters": parameters}).wanted("emoji", "png")
    assert asked == {
        "prompt": "owl",
        "format": "png",
        "model": "emoji",
        "negative_prompt": "red",
        "size": [768, 512],
        "steps": 9,
        "guidance_scale": 3.5,
        "sampler": "EulerAncestralDiscreteScheduler",
        "seed": 4,
    }
    assert TextToImageTask.from_json({"inputs": "owl"}).wanted(None, "jpeg") == {"prompt": "owl", "format": "jpeg"}


@pytest.mark.parametrize(
    ("path", "accept", "form"), [("/models/emoji", "image/png", "PNG"), ("/", "image/webp", "WEBP")]
)
def test_a_picture_comes_as_its_bytes(drawing, path, accept, form):
    body = {"inputs": "owl", "parameters": {"seed": 300}}
    answer = drawing.client.post(path, json=body, headers={"Accept": accept})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == accept
    assert answer.headers["x-seed"] == "300"
    assert Image.open(BytesIO(answer.content)).format == form


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/models/emojy", {"inputs": "owl"}, "did you mean 'emoji'"),
        ("/models/../../etc/passwd", {"inputs": "owl"}, "path is"),
        ("/models/emoji", {"inputs": "owl", "parameters": {"steps": 3}}, "num_inference_steps"),
        ("/models/emoji", {"inputs": "owl", "parameters": {"width": 64}}, "parameters.height is left out"),
        ("/models/emoji", {"inputs": "owl", "options": {}}, "options"),
        ("/models/emoji", {"inputs": "owl", "parameters": {"scheduler": "EulerDiscreteSchedular"}}, "did you mean"),
        ("/models/emoji", {"parameters": {}}, "inputs"),
        (
            "/models/emoji",
            {"inputs": "owl", "parameters": {"num_inference_steps": 100000}},
            "parameters.num_inference_steps is",
        ),
    ],
)
def test_refusals_are_in_hugging_faces_envelope(api, path, body, words):
    answer = api.client.post(path, json=body)
    assert answer.status_code in (404, 422), answer.text
    if path.startswith("/models/emoj"):
        assert answer.json().keys() == {"error"}
        assert words in answer.json()["error"]


def test_formats_are_those_that_a_client_accepts():
    assert accepted_format("text/html, image/jpeg;q=0.9, */*") == "jpeg"
    assert accepted_format("*/*") == "png"
    with pytest.raises(InvalidInput, match=r"^Accept is 'text/html', expected image/png"):
        accepted_format("text/html")


def test_a_key_is_needed_where_there_are_keys(drawing):
    headers = drawing.key("ada")
    assert drawing.client.post("/models/emoji", json={"inputs": "owl"}).status_code == 401
    assert drawing.client.post("/models/emoji", json={"inputs": "owl"}, headers=headers).status_code == 200
