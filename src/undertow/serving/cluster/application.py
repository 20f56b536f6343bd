"""The service as an application of Ray Serve: the same API as ingress, and workers as replicas beside it.

A RayService or `serve run` names `undertow.serving.cluster.application:build`, with `[serve]` as arguments."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from undertow.errors import InvalidInput
from undertow.extras import optional_package
from undertow.serving.cluster.policy import QueuePolicy
from undertow.serving.cluster.replica import GIVE_BACK_S, EngineReplica
from undertow.serving.settings import ServerSettings

DATABASE = "UNDERTOW_DATABASE"
"""The variable with the URL of the database."""
EVERYWHERE = "0.0.0.0"
NAME = "undertow"
"""Of the application."""
OPEN_REQUESTS = 10_000
"""Of the API at a time: who follows a job holds one, and the API refuses by itself what is too much."""
UP_S, DOWN_S = 5.0, 60.0
"""For how long more, or fewer, replicas must be wanted before they are there."""
HEALTH_S, PATIENCE_S = 5.0, 30.0
"""Between two questions whether a replica is well, and for its answer."""


def build(arguments: Mapping[str, Any]) -> Any:
    """The application that a cluster serves. Errors: `InvalidInput`; `MissingDependency`."""
    return application(cluster_settings(arguments))


def cluster_settings(arguments: Mapping[str, Any]) -> ServerSettings:
    """arguments: of `[serve]`, but for the address, which is the cluster's: others reach it, so nobody draws without a
    key, whatever they say. The URL of a database has a password, and may be in the environment. Errors:
    `InvalidInput`."""
    given = {"database": os.environ.get(DATABASE)} | dict(arguments) | {"host": EVERYWHERE}
    settings = ServerSettings.from_json(given)
    require_shared(settings)
    return settings


def application(settings: ServerSettings) -> Any:
    """Errors: `MissingDependency`."""
    with optional_package("ray", "ray"):
        from ray import serve  # noqa: PLC0415  # pyright: ignore[reportMissingImports]
        from ray.serve.config import AutoscalingConfig, AutoscalingPolicy  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    settings = placed(settings)
    json = settings.to_json()

    def api() -> Any:
        """Runs where the API is placed."""
        from undertow.serving.api.app import create_app  # noqa: PLC0415

        return create_app(ServerSettings.from_json(json))

    ingress = serve.deployment(serve.ingress(api)()).options(
        name="api",
        num_replicas=1,
        max_ongoing_requests=OPEN_REQUESTS,
        ray_actor_options={"num_cpus": 0},
    )
    engine = serve.deployment(EngineReplica).options(
        name="engine",
        num_replicas="auto",
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_replicas,
            max_replicas=settings.most_replicas,
            upscale_delay_s=UP_S,
            downscale_delay_s=DOWN_S,
            policy=AutoscalingPolicy(
                policy_function=f"{QueuePolicy.__module__}:{QueuePolicy.__qualname__}",
                policy_kwargs={"catch_up_s": settings.catch_up_s},
            ),
        ),
        ray_actor_options=resources(settings.devices[0]),
        health_check_period_s=HEALTH_S,
        health_check_timeout_s=PATIENCE_S,
        graceful_shutdown_timeout_s=settings.grace_s + GIVE_BACK_S,
    )
    return ingress.bind(engine.bind(json))


def resources(device: str) -> dict[str, Any]:
    """What Ray reserves for a replica on a device: a GPU, of which it shows this one alone, or a core."""
    return {"num_cpus": 1, "num_gpus": 1} if device == "cuda" else {"num_cpus": 1}


def placed(settings: ServerSettings) -> ServerSettings:
    """With absolute paths: replicas start in other folders."""
    return replace(
        settings,
        data=settings.data.absolute(),
        adapters=tuple(folder.absolute() for folder in settings.adapters),
        models={name: _absolute(source) for name, source in settings.models.items()},
    )


def require_shared(settings: ServerSettings) -> None:
    """Errors: `InvalidInput` for what several machines cannot share, and for what Ray decides."""
    if settings.database_url.startswith("sqlite"):
        raise InvalidInput(
            "serve.database",
            settings.database or "SQLite in the data folder",
            "PostgreSQL, where replicas may be on several machines",
            "name one: postgresql+psycopg://user:password@host/database",
        )
    require_for_ray(settings)


def require_for_ray(settings: ServerSettings) -> None:
    """Errors: `InvalidInput`."""
    if len(settings.devices) != 1 or ":" in settings.devices[0]:
        remedy = "say cuda, and how many with --max-replicas"
        expected = "one kind of device: Ray gives each replica its own"
        raise InvalidInput("serve.devices", ", ".join(settings.devices), expected, remedy)


def _absolute(source: str) -> str:
    return str(Path(source).absolute()) if Path(source).exists() else source
