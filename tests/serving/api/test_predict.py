"""Predictions over HTTP: safetensors in and out, the same numbers as the network's own."""

import json
import struct
import threading
from base64 import b64encode
from io import BytesIO
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load, save

from tests.embedded import CELLS, CHANNELS, SIDE
from tests.serving.api.stand_in import Api, is_problem
from undertow import Adapter, Conditioning, PredictionContext
from undertow.serving.failures import Failure, FailureCode
from undertow.serving.worker.worker import Worker

KIND = {"Content-Type": "application/x-safetensors"}
SHAPES = {"latents": (1, CHANNELS, CELLS, CELLS), "text_embeddings": (1, 5, 192), "negative_embeddings": (1, 5, 192)}
"""Of the embedded model."""


def tensors(count: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {f"{index}.{name}": torch.randn(shape) for index in range(count) for name, shape in SHAPES.items()}


def body(contexts: Any, given: dict[str, torch.Tensor]) -> bytes:
    return save(given, {"contexts": contexts if isinstance(contexts, str) else json.dumps(contexts)})


def png(picture: Image.Image) -> bytes:
    content = BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


ONE = tensors(1)


def test_contexts_with_unlike_adapters_are_answered_as_by_the_network(api: Api, monkeypatch):
    """Without guidance, with it (Ho and Salimans 2022: negative + scale * (text - negative)), and with a LoRA."""
    monkeypatch.setattr("undertow.serving.worker.worker.warm_up", lambda *_, **__: None)
    worker = Worker(api.store, api.artifacts, api.app.state.parts.catalog, api.settings, name="w")
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.02):
            worker.run_once()

    thread = threading.Thread(target=work)
    thread.start()
    given = tensors(5)
    outline = Image.new("L", (SIDE, SIDE), 0)
    outline.paste(255, (SIDE // 4, SIDE // 4, 3 * SIDE // 4, 3 * SIDE // 4))
    red = Image.new("RGB", (64, 64), "red")
    upload = api.client.post("/v1/artifacts", content=png(red), headers={"Content-Type": "image/png"}).json()
    contexts = [
        {"timestep": 500},
        {"timestep": [100], "guidance_scale": 3.0},
        {"timestep": 500, "adapters": [{"source": "mosaic", "scale": 0.7}]},
        {"timestep": 500, "adapters": [{"source": "edges", "image": b64encode(png(outline)).decode()}]},
        {"timestep": 500, "adapters": [{"source": "references", "image": {"artifact": upload["sha256"]}}]},
    ]
    answer = api.client.post("/v1/predict", content=body(contexts, given), headers=KIND)
    wrong = {**ONE, "0.text_embeddings": torch.randn(1, 5, 100)}
    misfit = api.client.post("/v1/predict", content=body([{"timestep": 1}], wrong), headers=KIND)
    stop.set()
    thread.join()
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-safetensors"
    noise = load(answer.content)
    assert noise.keys() == {f"{index}.noise" for index in range(5)}
    drawing = worker.models.take("emoji").service
    unet = drawing.unet
    for index, adapter in ((3, Adapter("edges", image=outline)), (4, Adapter("references", image=red))):
        own = {name: given[f"{index}.{name}"] for name in ("latents", "text_embeddings")}
        alike = PredictionContext(**own, timestep=500, guidance_scale=1.0, adapters=(adapter,))
        # In as many rows as the service computed, since rows are rounded otherwise in another number at a time.
        expected, *_ = drawing.predict_noise([alike] * (len(contexts) + 1))
        torch.testing.assert_close(noise[f"{index}.noise"], expected, atol=2e-5, rtol=1e-4)

    def alone(index: int, name: str, timestep: float) -> torch.Tensor:
        conditioning = Conditioning(context=given[f"{index}.{name}"])
        with torch.inference_mode():
            return unet(given[f"{index}.latents"], torch.tensor([timestep]), conditioning)

    torch.testing.assert_close(noise["0.noise"], alone(0, "text_embeddings", 500), atol=2e-5, rtol=1e-4)
    text, negative = alone(1, "text_embeddings", 100), alone(1, "negative_embeddings", 100)
    torch.testing.assert_close(noise["1.noise"], negative + 3 * (text - negative), atol=1e-4, rtol=1e-4)
    for index in (2, 3, 4):
        plain = alone(index, "text_embeddings", 500)
        assert (noise[f"{index}.noise"] - plain).abs().max() > 1e-3, f"the adapter of {index} acts"
    worker.models.close()
    job = api.client.get(answer.headers["location"]).json()
    assert (job["kind"], job["state"], job["pictures"]) == ("predictions", "succeeded", [])
    assert api.client.get(job["files"][0]["url"]).content == answer.content
    is_problem(misfit, 422, "invalid_request")


def test_who_waits_no_longer_gets_the_job(api):
    answer = api.client.post("/v1/predict", content=body([{"timestep": 1}], ONE), headers={**KIND, "Prefer": "wait=1"})
    assert (answer.status_code, answer.json()["kind"]) == (202, "predictions")
    assert answer.headers["location"] == answer.json()["links"]["self"]


@pytest.mark.parametrize(
    ("code", "status"),
    [(FailureCode.NON_FINITE, 422), (FailureCode.OUT_OF_MEMORY, 503), (FailureCode.INTERNAL, 500)],
)
def test_a_failure_is_a_problem_with_its_fault(api, code, status):
    done = threading.Timer(0.3, lambda: [api.fail(one, Failure(code=code, detail="why")) for one in api.claim()])
    done.start()
    answer = api.client.post("/v1/predict", content=body([{"timestep": 1}], ONE), headers=KIND)
    done.join()
    assert answer.status_code == status
    assert answer.json()["failure"] == code


HEADER = struct.pack("<Q", 2**40) + b"{}"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "safetensors"),
        (b"\0" * 100, "safetensors"),
        (HEADER, "header of at most 1 MiB"),
        (struct.pack("<Q", 4) + b"[[[[", "safetensors"),
        (struct.pack("<Q", 16) + b'{"a": {"x": 1}} ', "safetensors"),
        (body([{"timestep": 1}], ONE)[:-9], "cut off"),
        (save(ONE), "contexts"),
        (body("[", ONE), "contexts"),
        (body([], ONE), "1 to 64"),
        (body([1], ONE), "contexts.0"),
        (body([{}], ONE), "contexts.0.timestep"),
        (body([{"timestep": 1, "scale": 2}], ONE), "contexts.0.scale"),
        (body([{"timestep": 1, "adapters": [{"source": "mosaik"}]}], ONE), "'mosaic'"),
        (body([{"timestep": 1, "adapters": [{"source": "../x"}]}], ONE), "an adapter of this service"),
        (body([{"timestep": 1, "adapters": [{"source": "edges"}]}], ONE), "contexts.0.adapters[0].image is missing"),
        (body([{"timestep": 1, "adapters": [{"source": "edges", "image": "/etc/x"}]}], ONE), "opens no paths"),
        (body([{"timestep": 1, "adapters": [{"source": "mosaic", "image": "aaaa"}]}], ONE), "contexts.0.adapters"),
        (body([{"timestep": 1}, {"timestep": 1}], ONE), "1.latents"),
        (body([{"timestep": 1}], tensors(2)), "1.latents"),
        (body([{"timestep": 1}], {**ONE, "0.hints": torch.ones(1)}), "0.hints"),
        (body([{"timestep": 1}], {**ONE, "0.latents": torch.ones(CHANNELS, CELLS, CELLS)}), "4 dimensions"),
        (body([{"timestep": 1}], {**ONE, "0.latents": torch.ones(1, CHANNELS, CELLS, CELLS).int()}), "floats"),
        (body([{"timestep": 1}], {**ONE, "0.latents": torch.ones(65, CHANNELS, 1, 1)}), "at most 64"),
    ],
)
def test_a_file_that_cannot_be_answered_is_refused_before_a_worker_sees_it(api, content, word):
    answer = api.client.post("/v1/predict", content=content, headers={**KIND, "Prefer": "wait=1"})
    problem = is_problem(answer, 422, "invalid_request")
    assert word in problem["detail"], problem["detail"]
    assert api.store.jobs() == []


def test_another_type_of_body_is_refused(api):
    is_problem(api.client.post("/v1/predict", json={}), 415, "unsupported_media_type", "x-safetensors")
    answer = api.client.post("/v1/predict?model=emojy", content=body([{"timestep": 1}], ONE), headers=KIND)
    is_problem(answer, 422, "invalid_request", "'emoji'")
