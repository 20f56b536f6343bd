"""What a request may say here, for pages and forms that offer it: names, limits, what happens without a field, and what
the key that asks may do."""

from importlib import metadata
from typing import Any, get_args

from fastapi import APIRouter
from starlette.responses import JSONResponse

from undertow.engine.request import GenerationRequest
from undertow.known_names import DIALECTS, GRIDS, GUIDANCE, INVERSE_SAMPLERS, SAMPLERS
from undertow.serving.admission import JobOptions
from undertow.serving.api.auth import Reader
from undertow.serving.api.openapi import gives
from undertow.serving.api.parts import Parts, Service
from undertow.serving.jobs import Format, Mode
from undertow.serving.store.records import ApiKey

router = APIRouter()

LIMITS = ("max_steps", "max_count", "max_pixels", "max_body_bytes", "max_adapter_bytes", "queue_limit", "keep_s")
"""Settings that bound what is asked for."""


@router.get("/v1/choices", responses=gives(None))
async def show_choices(key: Reader, service: Service) -> JSONResponse:
    """Say what requests may choose from: samplers, schedules, guidance methods, dialects; limits, defaults, and what
    the key may do."""
    return JSONResponse(_choices(service, key))


def _choices(service: Parts, key: ApiKey) -> dict[str, Any]:
    return {
        "version": metadata.version("undertow"),
        "key": {"name": key.name, "scopes": list(key.scopes)},
        "samplers": [
            {"name": name, "also": list(others)} for name, others in SAMPLERS.items() if name not in INVERSE_SAMPLERS
        ],
        "schedules": list(GRIDS),
        "guidance_methods": list(GUIDANCE),
        "dialects": list(DIALECTS),
        "modes": list(get_args(Mode)),
        "mode": service.settings.mode,
        "formats": list(get_args(Format)),
        "limits": {name: getattr(service.settings, name) for name in LIMITS},
        "request": GenerationRequest(prompt="").to_json(),
        "options": JobOptions().to_json(),
    }
