"""What every route works with, made once for each application."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from undertow.serving.admission import Admission
from undertow.serving.api.auth import Gate
from undertow.serving.api.watch import Watch
from undertow.serving.artifacts import ArtifactFolder
from undertow.serving.catalog.catalog import Catalog
from undertow.serving.clock.timetable import Timetable
from undertow.serving.metrics import ApiMetrics
from undertow.serving.settings import ServerSettings
from undertow.serving.store.store import Store


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """The service as its API sees it: what is set, what is kept, what may be named, and who waits."""

    settings: ServerSettings
    store: Store
    artifacts: ArtifactFolder
    catalog: Catalog
    admission: Admission
    times: Timetable
    gate: Gate
    watch: Watch
    metrics: ApiMetrics = field(default_factory=ApiMetrics)
    clock: Callable[[], float] = time.time


def parts_of(request: Request) -> Parts:
    """Of the application that answers."""
    return request.app.state.parts


Service = Annotated[Parts, Depends(parts_of)]
"""The type of a route's argument that is all of it."""
