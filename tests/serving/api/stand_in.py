"""What tests of the API work with: a client, a store, and a function that does what a worker does, but draws colors.

It claims, publishes and fails through the real store, so that everything a client sees went the whole way.
"""

import json
import time
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from undertow.serving.api.app import create_app
from undertow.serving.artifacts import ArtifactFolder
from undertow.serving.catalog.catalog import Catalog
from undertow.serving.failures import Failure
from undertow.serving.inspection import DiagnosisView
from undertow.serving.jobs import Claim, JobResult, StoredFile, StoredPicture
from undertow.serving.settings import ServerSettings
from undertow.serving.store.records import Scope
from undertow.serving.store.store import Store

DRAWN = {"prompt": "red apple", "steps": 2}


class Clock:
    """The time, which tests may move on."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@dataclass(kw_only=True, eq=False)
class Api:
    """An application, a client of it, and what is behind it."""

    app: FastAPI
    client: TestClient
    store: Store
    artifacts: ArtifactFolder
    settings: ServerSettings
    clock: Clock
    keys: dict[str, str] = field(default_factory=dict)

    def close(self) -> None:
        self.client.close()
        self.store.close()

    def key(self, name: str, *scopes: str, **limits: int) -> dict[str, str]:
        """The headers of a new key."""
        chosen = tuple(map(Scope, scopes)) or (Scope.SUBMIT, Scope.READ)
        key, secret = self.store.keys.create(name, chosen, **limits)
        self.keys[name] = key.id
        return {"Authorization": f"Bearer {secret}"}

    def submit(self, headers: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
        """A job that was accepted."""
        answer = self.client.post("/v1/jobs", json={**DRAWN, **more}, headers=headers)
        assert answer.status_code in (201, 202), answer.text
        return answer.json()

    def work(self, most: int = 100) -> list[Claim]:
        """Draws everything that waits."""
        claims = self.claim(most)
        for claim in claims:
            assert self.publish(claim)
        return claims

    def claim(self, most: int = 100) -> list[Claim]:
        return self.store.claim("stand-in", lambda entries: [one.id for one in entries][:most], lease_s=60.0)

    def publish(self, claim: Claim) -> bool:
        if claim.job.spec.kind == "diagnosis":
            return self._publish_diagnosis(claim)
        request = claim.job.spec.request
        height, width = request["size"] or request["image"]["size"][::-1]
        seeds = [request["seed"] + k for k in range(request["count"])]
        pictures = [self._picture(claim.job.spec.format, width, height, seed) for seed in seeds]
        return self.store.publish(claim, JobResult(pictures=tuple(pictures), report={"drawn by": "stand-in"}))

    def fail(self, claim: Claim, failure: Failure) -> bool:
        return self.store.fail(claim, failure)

    def _publish_diagnosis(self, claim: Claim) -> bool:
        """Of a healthy request."""
        view = DiagnosisView(model=claim.job.spec.model, serious=False, findings=(), rules=(), skipped={})
        content = json.dumps(view.to_json()).encode()
        file = StoredFile(sha256=self.artifacts.put(content), media_type="application/json", bytes=len(content))
        return self.store.publish(claim, JobResult(pictures=(), files=(file,)))

    def _picture(self, form: str, width: int, height: int, seed: int) -> StoredPicture:
        content = picture_bytes(form.upper(), (width, height), (seed % 256, seed // 256 % 256, 7))
        return StoredPicture(
            sha256=self.artifacts.put(content),
            media_type=f"image/{form}",
            bytes=len(content),
            width=width,
            height=height,
            seed=seed,
        )


def picture_bytes(form: str = "PNG", size: tuple[int, int] = (8, 8), color: Any = (1, 2, 3)) -> bytes:
    """A file of one color."""
    buffer = BytesIO()
    Image.new("RGB", size, color).save(buffer, format=form)
    return buffer.getvalue()


@cache
def shared_catalog() -> Catalog:
    """Of the embedded model; read and hashed once in a session."""
    return Catalog(ServerSettings())


def open_api(folder: Path, catalog: Catalog, **settings: Any) -> Api:
    """An API as `create_app` makes it. settings: of the server."""
    chosen = ServerSettings(data=folder, **settings)
    folder.mkdir(parents=True, exist_ok=True)
    clock, artifacts = Clock(), ArtifactFolder(folder / "artifacts")
    store = Store.open(chosen.database_url, clock=clock)
    app = create_app(chosen, store, artifact_folder=artifacts, catalog=catalog)
    client = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
    return Api(app=app, client=client, store=store, artifacts=artifacts, settings=chosen, clock=clock)


def is_problem(answer: httpx.Response, status: int, code: str, *words: str) -> dict[str, Any]:
    """Asserts that an answer is complete problem details, and gives them back."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["code"] == code, problem
    assert problem["status"] == status
    assert problem["type"] == f"/docs#{code}"
    assert problem["title"]
    assert problem["instance"]
    assert problem["fault"] in ("request", "transient", "engine")
    assert isinstance(problem["may_retry"], bool)
    for word in words:
        assert word in problem["detail"], problem["detail"]
    assert "Traceback" not in answer.text
    return problem
