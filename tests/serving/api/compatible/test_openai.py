"""OpenAI's images: what its clients may say, and what they get. Fields and events are those of `openai` 3.57."""

import asyncio
import base64
import json
import threading
import time
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from tests.serving.api.stand_in import Api, picture_bytes
from undertow import InvalidInput
from undertow.serving.api.compatible.openai_words import ImageEdit, ImageGeneration, partial_due
from undertow.serving.failures import Failure, FailureCode
from undertow.serving.jobs import JobProgress, JobState

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
PIXELS = 64 * 64


def opened(text: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(text)))


def wanted(**given) -> dict:
    return ImageGeneration.read({"prompt": "owl", **given}).wanted()


def test_a_request_in_our_words():
    asked = wanted(
        model="emoji",
        n=2,
        size="512x768",
        output_format="webp",
        user="ada",
        seed=5,
        negative_prompt="red",
        steps=9,
        guidance_scale=3.5,
        loras=["mosaic", {"name": "edges", "scale": 0.5, "text_scale": 0}],
    )
    assert asked == {
        "prompt": "owl",
        "negative_prompt": "red",
        "model": "emoji",
        "count": 2,
        "size": [768, 512],  # height first
        "format": "webp",
        "label": "ada",
        "seed": 5,
        "steps": 9,
        "guidance_scale": 3.5,
        "adapters": [{"source": "mosaic", "scale": 1.0}, {"source": "edges", "scale": 0.5, "text_scale": 0.0}],
    }


def test_what_is_left_out_stays_open():
    usual = {"background": "auto", "quality": "auto", "moderation": "low", "size": "auto", "n": None, "style": None}
    assert (
        wanted(**usual)
        == wanted()
        == {
            "prompt": "owl",
            "negative_prompt": "",
            "count": 1,
            "format": "png",
            "label": "",
        }
    )


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("background", "transparent", "pictures have no transparency"),
        ("quality", "high", "steps"),
        ("style", "vivid", "describe the style in the prompt"),
        ("complexity", "low", "steps"),
        ("svg", {"model": "x"}, "made of pixels"),
        ("frame_count", 4, "pictures do not move"),
        ("output_format", "gif", "png"),
        ("output_compression", 50, "fixed quality"),
        ("partial_images", 2, "set stream to true"),
        ("partial_images", 4, "3"),
        ("size", "big", "WIDTHxHEIGHT"),
        ("n", 0, "1"),
        ("num_inference_steps", 3, "steps"),
        ("sead", 3, "seed"),
    ],
)
def test_what_undertow_does_not_do_is_refused_by_name(field, value, words):
    with pytest.raises(InvalidInput) as refusal:
        wanted(**{field: value})
    assert refusal.value.argument == field
    assert words in str(refusal.value)


def test_transparent_is_drawn_anew():
    mask = Image.new("RGBA", (8, 8), (9, 9, 9, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 4, 8))
    buffer = BytesIO()
    mask.save(buffer, format="PNG")
    asked = ImageEdit.read({"prompt": "owl"}).wanted_of(picture_bytes(), buffer.getvalue(), PIXELS)
    white = np.asarray(opened(asked["mask"]))
    assert (white[:, :4] == 255).all()
    assert (white[:, 4:] == 0).all()
    assert asked["strength"] == 1.0
    # DALL-E 2: without a mask, the picture's own transparency is it.
    own = ImageEdit.read({"prompt": "owl", "strength": 0.5}).wanted_of(buffer.getvalue(), None, PIXELS)
    assert (np.asarray(opened(own["mask"])) == white).all()
    assert own["strength"] == 0.5
    assert "mask" not in ImageEdit.read({"prompt": "owl"}).wanted_of(picture_bytes(), None, PIXELS)
    with pytest.raises(InvalidInput, match=r"^mask is a picture without transparency"):
        ImageEdit.read({"prompt": "owl"}).wanted_of(picture_bytes(), picture_bytes(), PIXELS)


def test_partial_pictures_are_spread_evenly():
    sent, at = 0, []
    for step in range(12):
        if partial_due(sent, 3, step, 12):
            sent, at = sent + 1, [*at, step]
    assert at == [3, 6, 9]


def test_pictures_come_in_base64_or_as_urls(drawing):
    asked = {"prompt": "owl", "n": 2, "seed": 300, "size": "64x64", "output_format": "jpeg"}
    answer = drawing.client.post(GENERATIONS, json=asked)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["size"] == "64x64"
    assert found["output_format"] == "jpeg"
    assert abs(found["created"] - time.time()) < 60
    first, second = (opened(one["b64_json"]) for one in found["data"])
    assert first.format == "JPEG"
    assert first.size == (64, 64)
    assert abs(second.getpixel((0, 0))[0] - 45) < 3  # 301 % 256, as JPEG has it
    urls = drawing.client.post(GENERATIONS, json={**asked, "response_format": "url"}).json()["data"]
    assert drawing.client.get(urls[0]["url"]).content == base64.b64decode(found["data"][0]["b64_json"])


def test_a_url_needs_the_key_that_drew(drawing):
    ada, eve = drawing.key("ada"), drawing.key("eve")
    body = {"prompt": "owl", "response_format": "url", "seed": 1}
    url = drawing.client.post(GENERATIONS, json=body, headers=ada).json()["data"][0]["url"]
    assert drawing.client.get(url, headers=ada).status_code == 200
    assert drawing.client.get(url, headers=eve).status_code == 404
    assert drawing.client.get(url).status_code == 401


def test_an_edit_is_a_form(drawing):
    files = {"image": ("a.png", picture_bytes(size=(64, 64)), "image/png")}
    form = {"prompt": "owl", "n": "1", "seed": "4", "steps": "3", "loras": '[{"name": "mosaic", "scale": 0.5}]'}
    answer = drawing.client.post(EDITS, data=form, files=files)
    assert answer.status_code == 200, answer.text
    (job,) = drawing.store.jobs()
    request = job.spec.request
    assert (request["seed"], request["steps"], request["image"]["size"]) == (4, 3, [64, 64])
    assert request["adapters"][0]["source"] == "mosaic"
    assert request["adapters"][0]["scale"] == 0.5


@pytest.mark.parametrize(
    ("files", "form", "param"),
    [
        ([("image", "a"), ("image", "b")], {}, "image"),
        ([("image[]", "a"), ("markup", "b")], {}, "markup"),
        ([("image", "a"), ("picture", "b")], {}, "picture"),
        ([("image", "a")], {"quality": "high"}, "quality"),
        ([("image", "a")], {"sead": "1"}, "sead"),
        ([], {}, "image"),
    ],
)
def test_a_form_that_asks_for_more_is_refused(api, files, form, param):
    parts = [(name, (one, picture_bytes(), "image/png")) for name, one in files]
    parts += [("prompt", (None, "owl"))]
    answer = api.client.post(EDITS, data=form, files=parts)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def error_of(answer, status: int, kind: str) -> dict:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == kind
    return error


def test_errors_are_in_openais_envelope(make_api):
    api = make_api(max_body_bytes=4096)
    error = error_of(api.client.post(GENERATIONS, json={"prompt": "owl", "steps": 0}), 400, "invalid_request_error")
    assert error["param"] == "steps"
    assert "steps is 0" in error["message"]
    many = error_of(api.client.post(GENERATIONS, json={"prompt": "owl", "n": 99}), 400, "invalid_request_error")
    assert many["param"] == "n"
    lora = error_of(
        api.client.post(GENERATIONS, json={"prompt": "owl", "loras": ["mosaik"]}), 400, "invalid_request_error"
    )
    assert lora["param"] == "loras[0].name"
    missing = error_of(api.client.post(GENERATIONS, json={"model": "emoji"}), 400, "invalid_request_error")
    assert missing["param"] == "prompt"
    unknown = api.client.post(GENERATIONS, json={"prompt": "owl", "model": "emojy"})
    error = error_of(unknown, 404, "invalid_request_error")
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "did you mean 'emoji'" in error["message"]
    assert unknown.headers["x-should-retry"] == "false"
    broken = api.client.post(GENERATIONS, content=b"{", headers={"content-type": "application/json"})
    error_of(broken, 400, "invalid_request_error")
    error_of(api.client.post(GENERATIONS, content=b"x" * 5000), 415, "invalid_request_error")
    error_of(api.client.post(GENERATIONS, json={"prompt": "x" * 5000}), 413, "invalid_request_error")
    error_of(api.client.post(EDITS, json={"prompt": "owl"}), 415, "invalid_request_error")
    form = {"content-type": "multipart/form-data; boundary=x"}
    error_of(api.client.post(EDITS, content=b"nonsense", headers=form), 400, "invalid_request_error")
    upload = api.client.post(EDITS, data={"prompt": "owl"}, files={"image": ("a.png", b"no picture", "image/png")})
    assert error_of(upload, 400, "invalid_request_error")["param"] == "image"
    api.key("somebody")
    error = error_of(api.client.post(GENERATIONS, json={"prompt": "owl"}), 401, "authentication_error")
    assert error["code"] == "invalid_api_key"
    reader = api.key("reader", "read")
    error_of(api.client.post(GENERATIONS, json={"prompt": "owl"}, headers=reader), 403, "permission_error")


def test_a_job_that_fails_says_why_and_whether_to_retry(api):
    def work(code: FailureCode):
        while not (claims := api.claim()):
            time.sleep(0.005)
        api.fail(claims[0], Failure(code=code, detail="the sentence", origin="picture 0"))

    for code, status, again in (
        (FailureCode.NON_FINITE, 400, "false"),
        (FailureCode.OUT_OF_MEMORY, 503, "true"),
        (FailureCode.POISON, 500, "false"),
    ):
        worker = threading.Thread(target=work, args=(code,))
        worker.start()
        answer = api.client.post(GENERATIONS, json={"prompt": "owl"})
        worker.join()
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["code"] == code.value
        assert answer.json()["error"]["message"] == "the sentence"
        assert answer.headers["x-should-retry"] == again


def stream(api: Api, **asked) -> list[dict]:
    """The data of all events."""
    body = {"prompt": "owl", "seed": 1, "size": "64x64", "stream": True, **asked}
    with api.client.stream("POST", GENERATIONS, json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line.startswith("data: ")]


def test_a_stream_sends_previews_and_the_picture(api):
    def work() -> None:
        while not (claims := api.claim()):
            time.sleep(0.005)
        for step in range(1, 5):
            api.artifacts.put_preview(claims[0].job.id, picture_bytes(color=(step, 0, 0)))
            api.store.heartbeat("w", [(claims[0], JobProgress(stage="denoising", step=step, steps=5))], lease_s=60)
            time.sleep(0.1)
        assert api.store.job(claims[0].job.id).preview_until > time.time()
        api.publish(claims[0])

    worker = threading.Thread(target=work)
    worker.start()
    *partial, last = stream(api, partial_images=2, output_format="webp")
    worker.join()
    assert [one["partial_image_index"] for one in partial] == [0, 1]
    assert {one["type"] for one in partial} == {"image_generation.partial_image"}
    assert opened(partial[0]["b64_json"]).format == "WEBP"
    assert last["type"] == "image_generation.completed"
    assert last["size"] == "64x64"
    assert opened(last["b64_json"]).size == (64, 64)
    assert last["usage"]["total_tokens"] == 0


def test_a_stream_that_fails_ends_with_the_error(api):
    def work() -> None:
        while not (claims := api.claim()):
            time.sleep(0.005)
        api.fail(claims[0], Failure(code=FailureCode.INTERNAL, detail="the sentence"))

    worker = threading.Thread(target=work)
    worker.start()
    (event,) = stream(api)
    worker.join()
    assert event["error"]["message"] == "the sentence"
    assert event["error"]["type"] == "server_error"


def test_the_same_idempotency_key_is_the_same_job(drawing):
    body, headers = {"prompt": "owl"}, {"Idempotency-Key": "one"}
    first, second = (drawing.client.post(GENERATIONS, json=body, headers=headers).json() for _ in range(2))
    assert first["data"] == second["data"]  # the seed was drawn once
    assert len(drawing.store.jobs()) == 1
    error_of(drawing.client.post(GENERATIONS, json={"prompt": "cat"}, headers=headers), 400, "invalid_request_error")


def test_models_are_listed_as_openai_lists_them(api):
    found = api.client.get("/v1/models").json()
    assert found["object"] == "list"
    assert api.client.get("/v1/models/emoji").json() == found["data"][0]
    assert error_of(api.client.get("/v1/models/emojy"), 404, "invalid_request_error")["code"] == "model_not_found"
    assert found["data"][0] | {"id": "emoji", "object": "model", "owned_by": "undertow"} == found["data"][0]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("body", [b'{"prompt": "owl"}', b'{"prompt": "owl", "stream": true}'])
def test_a_client_that_hangs_up_cancels_its_job(api, keep, body):
    """Unless it gave an idempotency key, by which it can come back."""
    headers = [(b"content-type", b"application/json"), (b"host", b"127.0.0.1")]
    headers += [(b"idempotency-key", b"one")] if keep else []
    job = hang_up(api, body, headers)
    assert job.state is (JobState.QUEUED if keep else JobState.CANCELED)


def hang_up(api: Api, body: bytes, headers: list[tuple[bytes, bytes]]):
    """Asks the application for a picture, and hangs up once the job is there."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": GENERATIONS,
        "raw_path": GENERATIONS.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    sent = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        if sent:
            return sent.pop()
        while not api.store.jobs():
            await asyncio.sleep(0.005)
        return {"type": "http.disconnect"}

    async def send(_):
        pass

    asyncio.run(api.app(scope, receive, send))
    (job,) = api.store.jobs()
    return job
