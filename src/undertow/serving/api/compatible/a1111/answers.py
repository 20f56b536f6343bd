"""What A1111's API answers, out of a job of ours (modules/processing.py, `Processed.js`, and modules/api/api.py)."""

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from PIL import Image
from starlette.responses import JSONResponse, Response

from undertow.checkpoints.files.hashes import MODEL_DIGITS
from undertow.engine.exif import COMMENT_KEY, from_exif
from undertow.serving.api.compatible.a1111.words import Drawing
from undertow.serving.api.problems import Problem
from undertow.serving.catalog.entries import ModelEntry
from undertow.serving.jobs import Job, JobState, StoredPicture

Picture = tuple[StoredPicture, bytes]
BASIC = {"WWW-Authenticate": 'Basic realm="undertow"'}


def drawing_json(
    pictures: Sequence[Picture], *, job: Job, read: Drawing, parameters: Mapping[str, Any], model: ModelEntry, at: str
) -> dict[str, Any]:
    """The answer to txt2img and img2img. at: the time when it was drawn, as A1111 writes it."""
    images = [b64encode(content).decode() for _, content in pictures] if read.send_images else []
    return {
        "images": images,
        "parameters": dict(parameters),
        "info": json.dumps(info_json(pictures, job=job, read=read, model=model, at=at)),
    }


def info_json(pictures: Sequence[Picture], *, job: Job, read: Drawing, model: ModelEntry, at: str) -> dict[str, Any]:
    """What A1111 says of the pictures."""
    request, count = job.spec.request, len(pictures)
    seeds = [one.seed for one, _ in pictures]
    height, width = size_of(job)
    subseeds = [request.get("variation_seed") or 0] * count
    texts = [infotext_of(content) for _, content in pictures]
    return {
        "prompt": read.prompt,
        "all_prompts": [read.prompt] * count,
        "negative_prompt": read.negative_prompt,
        "all_negative_prompts": [read.negative_prompt] * count,
        "seed": seeds[0] if seeds else request["seed"],
        "all_seeds": seeds,
        "subseed": request.get("variation_seed") or 0,
        "all_subseeds": subseeds,
        "subseed_strength": read.variation_strength,
        "width": pictures[0][0].width if pictures else width,
        "height": pictures[0][0].height if pictures else height,
        "sampler_name": read.sampler,
        "cfg_scale": read.cfg_scale,
        "steps": read.steps,
        "batch_size": read.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": model.name,
        "sd_model_hash": model.a1111_hash[:MODEL_DIGITS],
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": request.get("strength") if request.get("image") is not None else None,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": texts,
        "styles": [],
        "job_timestamp": at,
        "clip_skip": request.get("clip_skip") or 1,
        "is_using_inpainting_conditioning": False,
        "version": "undertow",
    }


def size_of(job: Job) -> tuple[int, int]:
    """Height and width of what a job was asked for."""
    request = job.spec.request
    height, width = request["size"] or request["image"]["size"][::-1]
    return height, width


def infotext_of(content: bytes) -> str:
    """A1111's text in a picture's file."""
    with Image.open(BytesIO(content)) as picture:
        found = picture.info.get(COMMENT_KEY) or from_exif(picture).get(COMMENT_KEY)
    return found if isinstance(found, str) else ""


def progress_json(jobs: Sequence[Job], now: float, preview: bytes | None = None) -> dict[str, Any]:
    """How far the jobs of a client are. jobs: those that wait or run, the newest first; the oldest that runs counts."""
    if not jobs:
        return {"progress": 0.0, "eta_relative": 0.0, "state": _state(None, 0), "current_image": None, "textinfo": None}
    job = next((one for one in reversed(jobs) if one.state is JobState.RUNNING), jobs[-1])
    done = share_done(job)
    ends = [one.finish_at for one in jobs if one.finish_at is not None]
    waits = f"{len(jobs) - 1} more wait" if len(jobs) > 1 else None
    return {
        "progress": max(done, 0.01),  # as A1111, whose clients take 0 for nothing to do
        "eta_relative": max(0.0, max(ends, default=now) - now),
        "state": _state(job, len(jobs)),
        "current_image": None if preview is None else b64encode(preview).decode(),
        "textinfo": "waiting" if job.state is JobState.QUEUED else waits,
    }


def task_json(job: Job | None, now: float, preview: bytes | None, shown: int) -> dict[str, Any]:
    """How far one task is, as A1111's own page asks (modules/progress.py). shown: the number of the preview that the
    client has."""
    live = job is not None and not job.state.is_final
    eta = None if job is None or not live or job.finish_at is None else max(0.0, job.finish_at - now)
    number = 0 if job is None else job.progress.step
    newer = None if preview is None or number == shown else f"data:image/png;base64,{b64encode(preview).decode()}"
    return {
        "active": job is not None and job.state is JobState.RUNNING,
        "queued": job is not None and job.state is JobState.QUEUED,
        "completed": job is not None and job.state is JobState.SUCCEEDED,
        "progress": share_done(job) if job is not None else None,
        "eta": eta,
        "live_preview": newer,
        "id_live_preview": shown if newer is None else number,
        "textinfo": None if job is None else str(job.state),
    }


def share_done(job: Job) -> float:
    """Of its steps."""
    if job.state is JobState.SUCCEEDED:
        return 1.0
    now = job.progress
    return min(now.step / now.steps, 1.0) if now.steps else 0.0


def _state(job: Job | None, count: int) -> dict[str, Any]:
    now = None if job is None else job.progress
    return {
        "skipped": False,
        "interrupted": job is not None and job.cancel_requested,
        "stopping_generation": False,
        "job": "" if job is None else job.id,
        "job_count": count,
        "job_timestamp": "0",
        "job_no": 0,
        "sampling_step": 0 if now is None else now.step,
        "sampling_steps": 0 if now is None else now.steps,
    }


def model_json(model: ModelEntry, title: str) -> dict[str, Any]:
    """An entry of GET /sdapi/v1/sd-models; where files lie is nobody's business."""
    return {
        "title": title,
        "model_name": model.name,
        "hash": model.a1111_hash[:MODEL_DIGITS],
        "sha256": model.a1111_hash,
        "filename": model.name,
        "config": None,
    }


def refusal(problem: Problem) -> Response:
    """A1111's form (modules/api/api.py, `handle_exception`), with the sentence where its clients look."""
    usual = problem.response("")
    headers = {name: value for name, value in usual.headers.items() if name == "retry-after"}
    content = {"error": problem.code, "detail": problem.detail, "body": "", "errors": problem.detail}
    challenge = BASIC if problem.kind.status == 401 else {}
    return JSONResponse(content, status_code=problem.kind.status, headers={**headers, **challenge})
