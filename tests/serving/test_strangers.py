"""Five clients that know nothing of undertow, unmodified, at one running service: each draws the picture that the
native API draws for the same settings."""

import asyncio
import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import httpx
import httpx2
import numpy as np
import pytest
import webuiapi
from huggingface_hub import InferenceClient
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from openai import OpenAI
from PIL import Image, ImageChops

from tests.embedded import SIDE
from undertow.serving.settings import ServerSettings
from undertow.serving.store.records import Scope
from undertow.serving.store.store import Store
from undertow.serving.worker.process import run_in_one_process

PROMPT, SEED, STEPS, GUIDANCE = "red apple on white background", 7, 2, 4.0
SIZE = f"{SIDE}x{SIDE}"


@dataclass(frozen=True, kw_only=True)
class Service:
    """A running service. Every stranger has a key of its own, so that nobody is served what another drew."""

    url: str
    store: Store

    def key(self, name: str, *scopes: Scope) -> str:
        return self.store.keys.create(name, scopes or (Scope.SUBMIT, Scope.READ))[1]

    def native(self, **settings: Any) -> np.ndarray:
        """The pixels that the native API draws."""
        body = {"prompt": PROMPT, "seed": SEED, "steps": STEPS, "guidance_scale": GUIDANCE, **settings}
        headers = {"Authorization": f"Bearer {self.key('native')}", "Prefer": "wait=60"}
        with httpx.Client(base_url=self.url, headers=headers, timeout=60) as client:
            job = client.post("/v1/jobs", json=body).raise_for_status().json()
            assert job["state"] == "succeeded", job
            return pixels(client.get(job["pictures"][0]["url"]).content)


def png_of(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(content)).convert("RGB"))


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Iterator[Service]:
    """API and worker as threads of this process, with the embedded model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = ServerSettings(data=tmp_path_factory.mktemp("strangers"), port=port)
    store = Store.open(settings.database_url)
    stop = threading.Event()
    running = threading.Thread(target=run_in_one_process, args=(settings, stop))
    running.start()
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, running)
        yield Service(url=url, store=store)
    finally:
        stop.set()
        running.join()
        store.close()


def wait_until_ready(url: str, running: threading.Thread) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and running.is_alive():
        try:
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    pytest.fail("the service did not become ready")


@pytest.fixture(scope="module")
def expected(service) -> np.ndarray:
    """What all of them are to draw."""
    return service.native()


@pytest.fixture
def closed() -> Iterator[Callable[[Any], Any]]:
    """Closes what it was given after the test: a connection that is left to the garbage is a warning in another one."""
    with ExitStack() as until:
        yield lambda client: until.enter_context(closing(client))


def test_openai_draws_and_streams(service, expected, closed):
    client = closed(OpenAI(base_url=f"{service.url}/v1", api_key=service.key("openai")))
    assert [model.id for model in client.models.list()] == ["emoji", "emoji-turbo"]
    own = {"seed": SEED, "steps": STEPS, "guidance_scale": GUIDANCE}
    drawn = client.images.generate(prompt=PROMPT, model="emoji", size=SIZE, extra_body=own)
    assert np.array_equal(pixels(base64.b64decode(drawn.data[0].b64_json)), expected)

    longer = {**own, "seed": SEED + 1, "steps": 4}
    stream = client.images.generate(prompt=PROMPT, stream=True, partial_images=2, extra_body=longer)
    *partial, last = list(stream)
    assert last.type == "image_generation.completed"
    assert last.size == SIZE
    assert np.array_equal(pixels(base64.b64decode(last.b64_json)), service.native(seed=SEED + 1, steps=4))
    assert [event.partial_image_index for event in partial] == list(range(len(partial)))
    assert all(event.type == "image_generation.partial_image" for event in partial)


def test_openai_draws_anew_where_a_mask_is_transparent(service, closed):
    picture = Image.new("RGB", (SIDE, SIDE), (240, 240, 240))
    hole = Image.new("L", (SIDE, SIDE))
    hole.paste(255, (0, 0, SIDE // 2, SIDE))  # white is drawn anew in undertow
    mask = picture.convert("RGBA")
    mask.putalpha(ImageChops.invert(hole))
    client = closed(OpenAI(base_url=f"{service.url}/v1", api_key=service.key("editor")))
    drawn = client.images.edit(
        image=("a.png", png_of(picture)),
        mask=("m.png", png_of(mask)),
        prompt=PROMPT,
        extra_body={"seed": SEED, "steps": STEPS, "guidance_scale": GUIDANCE, "loras": '["mosaic"]'},
    )
    found = pixels(base64.b64decode(drawn.data[0].b64_json))
    pictures = {name: base64.b64encode(png_of(one)).decode() for name, one in (("image", picture), ("mask", hole))}
    assert np.array_equal(found, service.native(**pictures, strength=1.0, adapters=["mosaic"]))
    assert (found[:, SIDE // 2 :] == 240).all()


def test_hugging_face_draws(service, expected, closed):
    client = closed(InferenceClient(model=f"{service.url}/models/emoji", token=service.key("hugging face")))
    drawn = client.text_to_image(PROMPT, seed=SEED, num_inference_steps=STEPS, guidance_scale=GUIDANCE)
    assert np.array_equal(np.asarray(drawn.convert("RGB")), expected)


def test_webuiapi_draws(service, closed):
    host, port = service.url.removeprefix("http://").split(":")
    client = webuiapi.WebUIApi(host=host, port=int(port), username="me", password=service.key("webuiapi"))
    closed(client.session)
    asked = {"prompt": PROMPT, "seed": SEED, "steps": STEPS, "cfg_scale": GUIDANCE, "width": SIDE, "height": SIDE}
    drawn = client.txt2img(**asked)  # all its other defaults go along
    assert np.array_equal(np.asarray(drawn.image.convert("RGB")), service.native(sampler="euler_a", schedule="normal"))
    assert drawn.info["seed"] == SEED
    assert f"Seed: {SEED}" in drawn.info["infotexts"][0]
    again = client.img2img(images=[drawn.image], denoising_strength=0.5, **asked)
    assert again.image.size == (SIDE, SIDE)
    assert client.get_progress()["state"]["job_count"] == 0


def test_open_webui_draws_with_both_engines(service):
    """Its requests one after another: backend/open_webui/routers/images.py of 0.6."""
    key = service.key("open webui")
    with httpx.Client(base_url=service.url, timeout=60) as client:
        # engine "openai": image_generations
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        body = {"model": "emoji", "prompt": PROMPT, "n": 1, "size": SIZE, "response_format": "b64_json"}
        parameters = {"steps": STEPS, "seed": SEED, "guidance_scale": GUIDANCE}  # IMAGES_OPENAI_API_PARAMS
        answer = client.post("/v1/images/generations", json={**body, **parameters}, headers=headers)
        drawn = answer.raise_for_status().json()["data"][0]["b64_json"]
        assert np.array_equal(pixels(base64.b64decode(drawn)), service.native())

        # engine "automatic1111": verify_url, get_models, set_image_model, image_generations
        basic = {"authorization": "Basic " + base64.b64encode(f"user:{key}".encode()).decode()}
        client.get("/sdapi/v1/options", headers=basic).raise_for_status()
        title = client.get("/sdapi/v1/sd-models", headers=basic).json()[0]["title"]
        options = client.get("/sdapi/v1/options", headers=basic).json()
        assert options["sd_model_checkpoint"] == title
        options["sd_model_checkpoint"] = title
        client.post("/sdapi/v1/options", json=options, headers=basic).raise_for_status()
        body = {"prompt": PROMPT, "batch_size": 1, "width": SIDE, "height": SIDE, "steps": STEPS, "negative_prompt": ""}
        answer = client.post("/sdapi/v1/txt2img", json=body, headers=basic).json()
        seed = json.loads(answer["info"])["seed"]
        native = service.native(seed=seed, guidance_scale=7.0, sampler="euler", schedule="normal")
        assert np.array_equal(pixels(base64.b64decode(answer["images"][0])), native)


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_an_mcp_client_draws(service, expected, mode):
    key = service.key("agent")

    async def talk() -> None:
        http = httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=60)
        transport = streamable_http_client(f"{service.url}/mcp", http_client=http)
        async with http, Client(transport, mode=mode) as client:
            tools = (await client.list_tools()).tools
            assert {tool.name for tool in tools} == {"draw", "status", "result", "list_adapters"}
            asked = {"prompt": PROMPT, "seed": SEED, "steps": STEPS, "guidance_scale": GUIDANCE}
            drawn = await client.call_tool("draw", asked)
            assert not drawn.is_error, drawn
            assert drawn.structured_content["state"] == "succeeded"
            picture = next(part for part in drawn.content if part.type == "image")
            assert np.array_equal(pixels(base64.b64decode(picture.data)), expected)
            again = await client.call_tool("result", {"job": drawn.structured_content["job"]})
            assert [part.type for part in again.content] == ["text", "image"]
            lost = await client.call_tool("result", {"job": "job_that_is_not_there"})
            assert lost.is_error
            assert "there is no job" in lost.content[0].text
            adapters = (await client.call_tool("list_adapters", {})).structured_content["adapters"]
            assert "mosaic" in {one["name"] for one in adapters}

    asyncio.run(talk())


def test_an_agent_draws_only_with_a_key_that_may(service):
    key = service.key("reader", Scope.READ)

    async def talk() -> None:
        http = httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=60)
        async with http, Client(streamable_http_client(f"{service.url}/mcp", http_client=http)) as client:
            refused = await client.call_tool("draw", {"prompt": PROMPT})
            assert refused.is_error
            assert refused.structured_content["code"] == "forbidden"
            assert not (await client.call_tool("list_adapters", {})).is_error
            unknown = await client.call_tool("drew", {})
            assert unknown.is_error
            assert "did you mean 'draw'" in unknown.content[0].text
            wrong = await client.call_tool("status", {"jbo": "x"})
            assert wrong.is_error
            assert wrong.structured_content["code"] == "invalid_request"

    asyncio.run(talk())
