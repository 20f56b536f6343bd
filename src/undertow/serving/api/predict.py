"""Predictions of the network over HTTP: safetensors in and out, many contexts with unlike adapters in one forward.

The body is read here without torch: its header says all that is checked before it becomes a job, which a worker answers
between two steps of what it draws (worker/predictions.py has the names of the tensors).
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from annotated_types import MaxLen
from fastapi import APIRouter, Header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from undertow.doors import shown
from undertow.errors import InvalidInput
from undertow.records import Finite, Record
from undertow.serving.api.answers import file_of, gives_file
from undertow.serving.api.auth import Submitter
from undertow.serving.api.bodies import SAFETENSORS_BODY, read_body, require_media_type
from undertow.serving.api.parts import Parts, Service
from undertow.serving.api.queries import Query, query_parameters
from undertow.serving.api.submitting import store_jobs
from undertow.serving.jobs import Job, JobSpec, JobWork, NewJob, StoredFile
from undertow.serving.store.records import ApiKey
from undertow.serving.tracing import TRACEPARENT

SAFETENSORS = "application/x-safetensors"
HEADER_BYTES = 2**20
MOST_ROWS = 64
"""Of one forward, guidance included."""
TENSORS = ("latents", "text_embeddings", "negative_embeddings", "pooled", "negative_pooled", "time_ids")
DIMENSIONS = {"latents": 4, "text_embeddings": 3, "negative_embeddings": 3}
FLOATS = ("F16", "BF16", "F32", "F64")

router = APIRouter()


@dataclass(frozen=True, kw_only=True)
class NamedAdapter(Record):
    """An adapter of the catalog, how strongly it acts, and what it looks at: a control map, or reference pictures, in
    base64 or as earlier uploads."""

    called = "an adapter"

    source: str
    scale: Finite = 1.0
    image: Any = None


@dataclass(frozen=True, kw_only=True)
class ContextBody(Record):
    """What the metadata of a file say of one context, beside its tensors."""

    called = "a context"

    timestep: Finite | Annotated[tuple[Finite, ...], MaxLen(MOST_ROWS)]
    """One number, or one for each of its latents."""
    guidance_scale: Finite = 1.0
    adapters: tuple[NamedAdapter, ...] = ()


_FILE = {"schema": {"type": "string", "format": "binary"}}


@router.post(
    "/v1/predict",
    response_class=Response,
    responses=gives_file(SAFETENSORS, _FILE["schema"], "The predictions: 0.noise, 1.noise, ..."),
    openapi_extra={
        "requestBody": {"required": True, "content": dict.fromkeys(SAFETENSORS_BODY, _FILE)},
        **query_parameters(model={"type": "string"}),
    },
)
async def predict(
    request: Request,
    key: Submitter,
    service: Service,
    prefer: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    """Predict noise for latents at timesteps, as the library's predict_noise. The metadata `contexts` is a JSON list of
    timestep, guidance_scale and adapters, with the pictures of those that look at any; tensors are called 0.latents,
    0.text_embeddings, 1.latents and so on."""
    model = Query(request, "model").text("model")
    require_media_type(request, *SAFETENSORS_BODY)
    content = await read_body(request, service.settings.max_body_bytes)
    job = await run_in_threadpool(_submitted, service, content, model, key)
    return await file_of(service, job, prefer)


def _submitted(service: Parts, content: bytes, model: str | None, key: ApiKey) -> Job:
    """Errors: `Problem`, `InvalidInput`, `StoreError`."""
    contexts, shapes = _read(content)
    entry = service.catalog.model(model)
    files, uploads = {"": entry.hash}, service.admission.uploads_of(key.id)
    described = [context.to_json() for context in contexts]
    for index, context in enumerate(described):
        used = service.admission.conditioned(context, f"contexts.{index}", entry, uploads)
        files |= {name: found.hash for name, found in used.items()}
    rows = sum(_rows(context, shapes[index]) for index, context in enumerate(contexts))
    if rows > MOST_ROWS:
        raise InvalidInput("latents", f"{rows} rows", f"at most {MOST_ROWS}, guidance included", "send several files")
    stored = StoredFile(sha256=hashlib.sha256(content).hexdigest(), media_type=SAFETENSORS, bytes=len(content))
    new = NewJob(
        key=key.id,
        spec=entry.computed(
            JobSpec(
                model=entry.name,
                kind="predictions",
                mode="fast",
                request={"artifact": stored.sha256, "contexts": described},
                files=files,
            )
        ),
        work=JobWork(cells=max(math.prod(one["latents"][2:]) for one in shapes), rows=rows, steps=1),
        inputs=(stored, *uploads.files.values()),
        cost=float(rows),
        traceparent=TRACEPARENT.get(),
        reuse=False,
    )
    service.gate.spend(key)
    for one in (content, *uploads.taken.values()):
        service.artifacts.put(one)
    new = replace(new, finish_at=service.times.promise(new))
    return store_jobs(service, [new], key)[0].job


def _rows(context: ContextBody, shapes: Mapping[str, Sequence[int]]) -> int:
    guided = context.guidance_scale != 1.0 and "negative_embeddings" in shapes
    return shapes["latents"][0] * (2 if guided else 1)


def _read(content: bytes) -> tuple[list[ContextBody], list[dict[str, list[int]]]]:
    """The contexts, and the shapes of the tensors of each. Errors: `InvalidInput`."""
    header = _header(content)
    metadata = header.pop("__metadata__", {})
    try:
        described = json.loads(metadata["contexts"])
    except (KeyError, TypeError, ValueError, RecursionError) as err:
        expected = "metadata with contexts, a JSON list of timestep, guidance_scale and adapters"
        raise InvalidInput("body", "a file without them", expected) from err
    if not isinstance(described, list) or not 0 < len(described) <= MOST_ROWS:
        raise InvalidInput("contexts", shown(described), f"a JSON list of 1 to {MOST_ROWS}")
    contexts = [_context(index, one) for index, one in enumerate(described)]
    shapes: list[dict[str, list[int]]] = [{} for _ in contexts]
    for name, tensor in header.items():
        _place(name, tensor, shapes)
    for index, found in enumerate(shapes):
        for needed in ("latents", "text_embeddings"):
            if needed not in found:
                raise InvalidInput(f"{index}.{needed}", "missing", "a tensor of that name for every context")
    return contexts, shapes


def _header(content: bytes) -> dict[str, Any]:
    """Errors: `InvalidInput` for what is no safetensors file, or one whose header does not fit its bytes."""
    length = int.from_bytes(content[:8], "little") if len(content) >= 8 else 0
    if not 2 <= length <= min(HEADER_BYTES, len(content) - 8):
        raise InvalidInput("body", f"{len(content):,} bytes", "a safetensors file with a header of at most 1 MiB")
    try:
        header = json.loads(content[8 : 8 + length])
        ends = [one["data_offsets"][1] for name, one in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as err:
        raise InvalidInput("body", "no header of safetensors", "a safetensors file", str(err)[:100]) from err
    if max(ends, default=0) != len(content) - 8 - length:
        raise InvalidInput("body", f"{len(content):,} bytes", "as many as its header says", "it is cut off")
    return header


def _context(index: int, described: Any) -> ContextBody:
    if not isinstance(described, dict):
        raise InvalidInput(f"contexts.{index}", shown(described), "an object with timestep")
    try:
        return ContextBody.from_json(described)
    except InvalidInput as err:
        raise InvalidInput(f"contexts.{index}.{err.argument}", err.value, err.expected, err.remedy) from err


def _place(name: str, tensor: Any, shapes: list[dict[str, list[int]]]) -> None:
    """Notes the shape of a tensor at its context. Errors: `InvalidInput`."""
    index, _, field = name.partition(".")
    if (
        not (index.isascii() and index.isdecimal() and len(index) < 4 and int(index) < len(shapes))
        or field not in TENSORS
    ):
        expected = f"a context's number, a dot, and one of {', '.join(TENSORS)}"
        raise InvalidInput("tensor", repr(name[:100]), expected)
    shape, dtype = tensor.get("shape"), tensor.get("dtype")
    sizes = shape if isinstance(shape, list) and all(isinstance(one, int) and one > 0 for one in shape) else None
    if sizes is None or dtype not in FLOATS or len(sizes) != DIMENSIONS.get(field, len(sizes)):
        expected = f"floats, in {DIMENSIONS[field]} dimensions" if field in DIMENSIONS else "floats"
        raise InvalidInput(name, f"{shape} of {dtype}", expected, "without empty ones")
    shapes[int(index)][field] = sizes
