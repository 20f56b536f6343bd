"""The tools of agents: what they answer of a job in every state, without MCP around them, of which
tests/serving/test_strangers.py has a client."""

import asyncio

import pytest

from undertow import InvalidInput
from undertow.serving.api.auth import LOCAL
from undertow.serving.api.compatible.agents_tools import TOOLS, Answer, Draw
from undertow.serving.api.problems import Problem
from undertow.serving.failures import Failure, FailureCode
from undertow.serving.store.records import JobNotFound


async def quiet(done: float, of: float, words: str) -> None:
    pass


def call(api, tool: str, key=LOCAL, **arguments) -> Answer:
    return asyncio.run(TOOLS[tool].run(api.app.state.parts, key, arguments, quiet))


def test_arguments_in_our_words():
    asked = Draw.from_json(
        {
            "prompt": "owl",
            "width": 512,
            "height": 768,
            "seed": 3,
            "steps": 4,
            "guidance_scale": 2,
            "count": 2,
            "adapters": ["mosaic", {"name": "edges", "scale": 0.5}],
            "model": "emoji",
        }
    ).wanted()
    assert asked == {
        "prompt": "owl",
        "negative_prompt": "",
        "count": 2,
        "model": "emoji",
        "size": [768, 512],
        "seed": 3,
        "steps": 4,
        "guidance_scale": 2.0,
        "adapters": [{"source": "mosaic", "scale": 1.0}, {"source": "edges", "scale": 0.5}],
    }
    for given, words in (({"promt": "owl"}, "promt"), ({"prompt": "owl", "width": 64}, "height is left out")):
        with pytest.raises(InvalidInput, match=words):
            Draw.from_json(given).wanted()


def test_pictures_come_when_they_are_done_in_time(drawing):
    told = []

    async def tell(done: float, of: float, words: str) -> None:
        told.append((done, words))

    answer = asyncio.run(
        TOOLS["draw"].run(drawing.app.state.parts, LOCAL, {"prompt": "owl", "count": 2, "seed": 5, "wait_s": 20}, tell)
    )
    assert answer.about["state"] == "succeeded"
    assert not answer.failed
    assert [one.seed for one, _ in answer.pictures] == [5, 6]
    assert answer.about["pictures"][0]["url"].startswith("/v1/artifacts/")
    assert told
    assert told[0][0] == 0


def test_a_job_that_takes_longer_goes_on(api):
    answer = call(api, "draw", prompt="owl", wait_s=0)
    assert answer.about["state"] == "queued"
    assert not answer.pictures
    assert not answer.failed
    job = answer.about["job"]
    assert "it is not done" in answer.about["next"]
    early = call(api, "result", job=job)
    assert early.failed
    assert early.about["state"] == "queued"
    assert not early.pictures
    assert call(api, "status", job=job).about["state"] == "queued"
    api.work()
    assert call(api, "status", job=job).about["next"] == "it is done: result has the pictures"
    assert len(call(api, "result", job=job).pictures) == 1


def test_a_lost_job_is_never_done(api):
    """comfyui-mcp #2507: a job that was gone was reported as done."""
    for tool in ("status", "result"):
        with pytest.raises(JobNotFound, match="there is no job 'job_gone'"):
            call(api, tool, job="job_gone")
    job = call(api, "draw", prompt="owl", wait_s=0, seed=1).about["job"]
    (claim,) = api.claim()
    api.fail(claim, Failure(code=FailureCode.POISON, detail="it ended three workers"))
    failed = call(api, "result", job=job)
    assert failed.failed
    assert failed.about["state"] == "failed"
    assert failed.about["failure"]["detail"] == "it ended three workers"
    assert "would fail again" in failed.about["next"]
    # Drawn, but its file is gone from the disk.
    done = call(api, "draw", prompt="owl", wait_s=0, seed=2).about["job"]
    api.work()
    picture = api.store.job(done).result.pictures[0]
    api.artifacts.path(picture.sha256).unlink()
    with pytest.raises(Problem, match="gone from the disk"):
        call(api, "result", job=done)


def test_canceled_jobs_have_no_pictures(api):
    job = call(api, "draw", prompt="owl", wait_s=0).about["job"]
    api.store.cancel(job)
    answer = call(api, "result", job=job)
    assert answer.failed
    assert answer.about["state"] == "canceled"
    assert "draw again" in answer.about["next"]


def test_jobs_of_another_key_are_not_there(api):
    api.key("ada")
    api.key("eve")
    ada, eve = sorted(api.store.keys.list(), key=lambda key: key.name)
    job = call(api, "draw", key=ada, prompt="owl", wait_s=0).about["job"]
    with pytest.raises(JobNotFound):
        call(api, "status", key=eve, job=job)


def test_adapters_are_listed_by_the_names_that_draw_takes(api):
    listed = call(api, "list_adapters").about
    assert listed["models"] == ["emoji", "emoji-turbo"]
    names = {one["name"]: one for one in listed["adapters"]}
    assert names["mosaic"]["kind"] == "LoRA"
    assert not names["mosaic"]["needs_picture"]
    answer = call(api, "draw", prompt="owl", adapters=["mosaic"], wait_s=0)
    assert api.store.job(answer.about["job"]).spec.request["adapters"][0]["source"] == "mosaic"
    with pytest.raises(InvalidInput, match="did you mean 'mosaic'"):
        call(api, "draw", prompt="owl", adapters=["mosaik"], wait_s=0)
