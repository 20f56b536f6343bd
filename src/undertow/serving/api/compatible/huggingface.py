"""Hugging Face's text-to-image task: a prompt and parameters in, the bytes of one picture out.

`huggingface_hub.InferenceClient(model="http://host:8188/models/NAME")` posts to exactly that URL, and
`InferenceClient(base_url="http://host:8188")` to its root, as at an Inference Endpoint, which has one model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge
from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from undertow.errors import InvalidInput
from undertow.records import Finite, Record
from undertow.serving.api.auth import Submitter
from undertow.serving.api.bodies import read_json
from undertow.serving.api.compatible.described import ANSWERS, takes
from undertow.serving.api.compatible.waiting import finished, pictures_of, refusing_with, submit
from undertow.serving.api.parts import Parts, Service
from undertow.serving.api.problems import Problem
from undertow.serving.jobs import Format
from undertow.serving.store.records import ApiKey

FORMATS: Mapping[str, Format] = {
    "image/png": "png",
    "image/jpeg": "jpeg",
    "image/webp": "webp",
    "image/*": "png",
    "*/*": "png",
}
"""By what a client accepts."""


NAMES = {
    "prompt": "inputs",
    "negative_prompt": "parameters.negative_prompt",
    "size": "parameters.height, parameters.width",
    "steps": "parameters.num_inference_steps",
    "guidance_scale": "parameters.guidance_scale",
    "sampler": "parameters.scheduler",
    "seed": "parameters.seed",
}
"""The task's names of our fields."""


@dataclass(frozen=True, kw_only=True)
class TaskParameters(Record):
    """The task's parameters (huggingface.js, packages/tasks, text-to-image)."""

    argument_prefix = "parameters."
    called = "the task's parameters"

    negative_prompt: str | None = None
    height: Annotated[int, Ge(1)] | None = None
    width: Annotated[int, Ge(1)] | None = None
    num_inference_steps: Annotated[int, Ge(1)] | None = None
    guidance_scale: Finite | None = None
    scheduler: str | None = None
    """A class of diffusers, or a sampler that `undertow samplers` lists."""
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class TextToImageTask(Record):
    """The body of the task."""

    called = "the task"

    inputs: str
    """The prompt."""
    parameters: TaskParameters | None = None

    def wanted(self, model: str | None, output_format: Format) -> dict[str, Any]:
        """The job, as `Admission.admit` takes it. Errors: `InvalidInput`."""
        given = self.parameters or TaskParameters()
        if (given.width is None) != (given.height is None):
            missing = "width" if given.width is None else "height"
            raise InvalidInput(f"parameters.{missing}", "left out", "both width and height, or neither")
        chosen = {
            "model": model,
            "negative_prompt": given.negative_prompt,
            "size": None if given.height is None else [given.height, given.width],
            "steps": given.num_inference_steps,
            "guidance_scale": given.guidance_scale,
            "sampler": given.scheduler,
            "seed": given.seed,
        }
        named = {name: value for name, value in chosen.items() if value is not None}
        return {"prompt": self.inputs, "format": output_format, **named}


def refusal(problem: Problem) -> Response:
    """{"error": the sentence}, as Hugging Face's servers refuse."""
    usual = problem.response("")
    headers = {name: value for name, value in usual.headers.items() if name in ("retry-after", "www-authenticate")}
    return JSONResponse({"error": problem.detail}, status_code=problem.kind.status, headers=headers)


router = APIRouter(route_class=refusing_with(refusal), tags=["Hugging Face"])

DRAWN: dict[int | str, dict[str, Any]] = {
    **ANSWERS,
    200: {
        "description": "The picture.",
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in list(FORMATS)[:3]},
    },
}


@router.post("/models/{name:path}", response_class=Response, responses=DRAWN, openapi_extra=takes(TextToImageTask))
async def draw_with_model(name: str, request: Request, key: Submitter, service: Service) -> Response:
    """Draw one picture, as Hugging Face's clients ask a model for it."""
    return await _draw(request, service, key, name)


@router.post("/", response_class=Response, responses=DRAWN, openapi_extra=takes(TextToImageTask))
async def draw_with_first_model(request: Request, key: Submitter, service: Service) -> Response:
    """Draw one picture, as Hugging Face's clients ask an endpoint of one model for it."""
    return await _draw(request, service, key, None)


async def _draw(request: Request, service: Parts, key: ApiKey, model: str | None) -> Response:
    output_format = accepted_format(request.headers.get("accept", "*/*"))
    given, _ = await read_json(request, service.settings.max_body_bytes)
    wanted = TextToImageTask.from_json(given).wanted(model, output_format)
    job = await finished(service, request, await submit(service, request, wanted, key, NAMES))
    ((picture, content),) = await run_in_threadpool(pictures_of, service, job)
    headers = {"Cache-Control": "no-store", "X-Seed": str(picture.seed)}
    return Response(content, media_type=picture.media_type, headers=headers)


def accepted_format(accept: str) -> Format:
    """The first of what a client accepts that pictures can be. Errors: `InvalidInput`."""
    for one in accept.split(","):
        found = FORMATS.get(one.partition(";")[0].strip().lower())
        if found is not None:
            return found
    raise InvalidInput("Accept", repr(accept[:100]), "image/png, image/jpeg or image/webp", "leave it out for PNG")
