"""The tools of agents: draw, status, result, list_adapters. No MCP here; `agents` speaks it.

Every answer says the state of the job as the store has it. A job that is not there is an error and never "done".
"""

import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Le
from starlette.concurrency import run_in_threadpool

from undertow.errors import InvalidInput
from undertow.records import Finite, Record, read_by
from undertow.serving.api.compatible.openai_words import Lora, as_loras
from undertow.serving.api.compatible.waiting import pictures_of
from undertow.serving.api.finding import find_job
from undertow.serving.api.parts import Parts
from undertow.serving.api.submitting import submit_one
from undertow.serving.api.views import artifact_path, failure_view
from undertow.serving.jobs import Job, JobState, StoredPicture, expected_at
from undertow.serving.store.records import ApiKey, Scope

WAIT_S = 45.0
"""Agents' programs give up after about a minute."""
LONGEST_WAIT_S = 600.0

Tell = Callable[[float, float, str], Awaitable[None]]
"""Told how far a job is: steps that are done, of how many, in words."""


@dataclass(frozen=True, kw_only=True)
class Draw(Record):
    """Arguments of `draw`."""

    called = "draw"

    prompt: str
    """What to draw."""
    negative_prompt: str = ""
    """What not to draw."""
    model: str | None = None
    """The service's first model when left out."""
    width: Annotated[int, Ge(1)] | None = None
    """In pixels; the model's own size when left out."""
    height: Annotated[int, Ge(1)] | None = None
    seed: int | None = None
    """The same seed and arguments give the same picture; drawn when left out, and told in the answer."""
    steps: Annotated[int, Ge(1)] | None = None
    """More steps take longer and are often better; the model's own number when left out."""
    guidance_scale: Finite | None = None
    """How closely to follow the prompt."""
    count: Annotated[int, Ge(1)] = 1
    """Number of pictures, with consecutive seeds."""
    adapters: Annotated[tuple[Lora, ...], read_by(as_loras)] = ()
    """Names of list_adapters, or objects with name and scale."""
    wait_s: Annotated[Finite, Ge(0), Le(LONGEST_WAIT_S)] = WAIT_S
    """Seconds to wait for the pictures; afterwards the job goes on, and `result` has them later."""

    def wanted(self) -> dict[str, Any]:
        """The job, as `Admission.admit` takes it. Errors: `InvalidInput`."""
        if (self.width is None) != (self.height is None):
            missing = "width" if self.width is None else "height"
            raise InvalidInput(missing, "left out", "both width and height, or neither")
        chosen = {
            "model": self.model,
            "size": None if self.height is None else [self.height, self.width],
            "seed": self.seed,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "adapters": [one.wanted() for one in self.adapters] or None,
        }
        named = {name: value for name, value in chosen.items() if value is not None}
        return {"prompt": self.prompt, "negative_prompt": self.negative_prompt, "count": self.count, **named}


@dataclass(frozen=True, kw_only=True)
class OfJob(Record):
    """Arguments of `status` and `result`."""

    called = "a tool about a job"

    job: str
    """The id that draw answered."""


@dataclass(frozen=True, kw_only=True)
class OfModel(Record):
    """Arguments of `list_adapters`."""

    called = "list_adapters"

    model: str | None = None
    """Only what fits this model."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """about: as JSON. failed: whether the tool did not do what it was asked to."""

    about: dict[str, Any]
    pictures: Sequence[tuple[StoredPicture, bytes]] = ()
    failed: bool = False


async def draw(service: Parts, key: ApiKey, given: Mapping[str, Any], tell: Tell) -> Answer:
    """Submits a job, and waits for it a while. Errors: those of `submit_one`."""
    asked = Draw.from_json(given)
    job = (await run_in_threadpool(submit_one, service, asked.wanted(), key)).job
    until = time.monotonic() + asked.wait_s
    told = -1
    while not job.state.is_final and (left := until - time.monotonic()) > 0:
        seen = service.watch.seen
        job = await run_in_threadpool(service.store.job, job.id)
        if not job.state.is_final:
            if job.progress.step > told:
                told = job.progress.step
                await tell(told, job.progress.steps or math.inf, f"{job.state}: {job.progress.stage}")
            await service.watch.changed(seen, left)
    return await run_in_threadpool(_with_pictures, service, job)


async def status(service: Parts, key: ApiKey, given: Mapping[str, Any], tell: Tell) -> Answer:
    """How a job stands. Errors: `JobNotFound`."""
    del tell
    job = await run_in_threadpool(find_job, service, OfJob.from_json(given).job, key)
    return Answer(about=job_json(job, service.clock()))


async def result(service: Parts, key: ApiKey, given: Mapping[str, Any], tell: Tell) -> Answer:
    """The pictures of a job. Errors: `JobNotFound`, `Problem`."""
    del tell
    job = await run_in_threadpool(find_job, service, OfJob.from_json(given).job, key)
    answer = await run_in_threadpool(_with_pictures, service, job)
    return answer if job.state is JobState.SUCCEEDED else Answer(about=answer.about, failed=True)


async def list_adapters(service: Parts, key: ApiKey, given: Mapping[str, Any], tell: Tell) -> Answer:
    """What `adapters` may name. Errors: `InvalidInput`."""
    del key, tell
    asked = OfModel.from_json(given)
    found = await run_in_threadpool(service.catalog.adapters, asked.model)
    listed = [{"name": one.name, "kind": one.kind, "needs_picture": one.reads_pictures} for one in found]
    return Answer(about={"models": list(service.catalog.models), "adapters": listed})


def _with_pictures(service: Parts, job: Job) -> Answer:
    """What is known of a job, and its pictures if it has any."""
    about = job_json(job, service.clock())
    if job.state is not JobState.SUCCEEDED:
        return Answer(about=about, failed=job.state.is_final)
    return Answer(about=about, pictures=pictures_of(service, job))


def job_json(job: Job, now: float) -> dict[str, Any]:
    """A job as an agent needs it: its state in a word, and in a sentence what to do."""
    pictures = () if job.result is None else job.result.pictures
    waits_for = None if job.state.is_final else job.finish_at
    return {
        "job": job.id,
        "state": job.state.value,
        "next": _next(job),
        "step": job.progress.step,
        "steps": job.progress.steps,
        "finish_in_s": None if waits_for is None else round(expected_at(waits_for, now) - now, 1),
        "seed": job.spec.request.get("seed"),
        "failure": None if job.failure is None else failure_view(job.failure).to_json(),
        "pictures": [{"url": artifact_path(one.sha256), "seed": one.seed} for one in pictures],
    }


def _next(job: Job) -> str:
    match job.state:
        case JobState.QUEUED | JobState.RUNNING:
            return "it is not done: ask status after a while, and result when it has succeeded"
        case JobState.SUCCEEDED:
            return "it is done: result has the pictures"
        case JobState.CANCELED:
            return "it was canceled and has no pictures: draw again if they are still wanted"
        case _:
            again = job.failure is not None and job.failure.may_retry
            return f"it has no pictures: {'draw again' if again else 'the same request would fail again'}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Tool:
    """What a client is told of a tool. scope: that its key must have."""

    about: str
    arguments: type[Record]
    scope: Scope
    run: Callable[[Parts, ApiKey, Mapping[str, Any], Tell], Awaitable[Answer]]
    changes: bool = False


TOOLS: Mapping[str, Tool] = {
    "draw": Tool(
        about="Draw pictures from a prompt. Waits up to wait_s and gives the pictures; a job that takes longer goes "
        "on, and its id is for status and result.",
        arguments=Draw,
        scope=Scope.SUBMIT,
        run=draw,
        changes=True,
    ),
    "status": Tool(
        about="How a job stands: queued, running, succeeded, failed, canceled or expired, how far it is and when it "
        "will be done.",
        arguments=OfJob,
        scope=Scope.READ,
        run=status,
    ),
    "result": Tool(
        about="The pictures of a job that succeeded. An error for every other job, also for one that is not known.",
        arguments=OfJob,
        scope=Scope.READ,
        run=result,
    ),
    "list_adapters": Tool(
        about="Adapters (LoRA and others) that draw can use by name, and the models.",
        arguments=OfModel,
        scope=Scope.READ,
        run=list_adapters,
    ),
}
