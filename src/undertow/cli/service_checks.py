"""What can be wrong with a service or one of its workers, looked at before anything starts."""

from pathlib import Path
from typing import TYPE_CHECKING

from undertow.errors import InvalidInput
from undertow.extras import require_packages

if TYPE_CHECKING:
    from undertow.serving.catalog.catalog import Catalog
    from undertow.serving.catalog.entries import ModelEntry
    from undertow.serving.settings import ServerSettings

NEEDED = {"fastapi": "fastapi", "uvicorn": "uvicorn", "sqlalchemy": "sqlalchemy", "alembic": "alembic",
          "sse_starlette": "sse-starlette", "prometheus_client": "prometheus-client", "httpx": "httpx",
          "mcp": "mcp", "python_multipart": "python-multipart"}  # fmt: skip
"""Modules that the service needs, and the packages that they come with."""


def require_worker_parts(settings: "ServerSettings") -> None:
    """Errors: `MissingDependency`; `InvalidInput` for a device that is not here."""
    from undertow.known_names import require_device_name
    from undertow.serving.tracing import NEEDED as TRACING

    if settings.telemetry:
        require_packages("telemetry", TRACING)
    if settings.backend == "openvino":
        require_packages("openvino", {"openvino": "openvino"})
    for device in settings.devices:
        require_device_name("--device", device)
        _require_there(device)
        if settings.quantize is not None:
            _require_computed(settings.quantize, device)


def readable_catalog(settings: "ServerSettings") -> "Catalog":
    """Errors: `UndertowError`, `OSError` for a model that is not there, is none, or has no room for any picture;
    `InvalidInput` for a folder of adapters that is not there."""
    from undertow.embedded import located
    from undertow.serving.catalog.catalog import Catalog

    for folder in settings.adapters:
        if not folder.is_dir():
            raise InvalidInput("--adapters", str(folder), "a folder that is there", "make it, or leave the option out")
    for source in settings.models.values():
        located(source)  # which knows the names that are near
    catalog = Catalog(settings, device=settings.devices[0])
    for name in settings.models:
        _require_room(settings, catalog.model(name))
    return catalog


def _require_room(settings: "ServerSettings", model: "ModelEntry") -> None:
    """Errors: `InvalidInput` for a budget in which no picture fits."""
    from undertow.engine.request import GenerationRequest
    from undertow.serving.capacity import Capacity
    from undertow.serving.failures import Refused
    from undertow.shortage import size_in_words

    if settings.budget_bytes is None:
        return
    try:
        Capacity(settings).require(GenerationRequest(prompt=""), model, {}, rows=None)
    except Refused as refusal:
        if refusal.numbers.get("nearest") is None:
            least = size_in_words(refusal.numbers["needed_bytes"])
            remedy = "`undertow plan` tells what pictures need; or leave the option out"
            expected = f"at least {least}, which a picture of {model.name} needs"
            raise InvalidInput("--budget", size_in_words(settings.budget_bytes), expected, remedy) from refusal


def described_computing(settings: "ServerSettings", catalog: "Catalog") -> dict[str, str]:
    """How models compute, by option, where something was said of it."""
    found = {} if settings.precision is None else {"precision": _precision(settings, catalog)}
    if settings.backend == "background":
        usual = "" if settings.mode == "fast" else "; where a client names no mode, jobs are reproducible (--mode)"
        found["backend"] = f"background, for jobs in the mode fast: reproducible ones are computed eagerly{usual}"
    elif settings.backend == "packed":
        found["backend"] = "packed: U-Nets have their weights in memory twice"
    elif settings.backend != "eager":
        found["backend"] = f"{settings.backend}; the first job of every size waits until its network is made"
    if settings.quantize is not None:
        found["quantize"] = settings.quantize
    return found


def _precision(settings: "ServerSettings", catalog: "Catalog") -> str:
    """What models compute in on the first device, where a type was asked for: that, or what else and why."""
    from undertow.known_names import PRECISIONS

    asked = settings.precision
    assert asked is not None
    types = {entry.dtype for entry in catalog.models.values()}
    decoders = {entry.vae_dtype for entry in catalog.models.values()} - types
    said: str = asked
    if types != {PRECISIONS[asked]}:
        said += f", computed in {_all_of(types)}: this processor has no instructions for {asked}"
    elif asked == "f16" and settings.devices[0] == "cpu":
        said += ", which processors imitate, many times slower than f32"
    return said + (f"; autoencoders in {_all_of(decoders)}" if decoders else "")


def _all_of(types: set[str]) -> str:
    return " and ".join(sorted(types))


def require_folder(folder: Path) -> None:
    """Errors: `InvalidInput` for one that cannot be written."""
    from tempfile import TemporaryFile

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return
    except OSError as err:
        problem = err.strerror or str(err)
        remedy = "choose another with --data, or let this user write there"
        raise InvalidInput("--data", str(folder), f"a folder that can be written ({problem})", remedy) from err


def _require_computed(scheme: str, device: str) -> None:
    """Asks, in a process of its own too, whether weights can be quantized so. Errors: `InvalidInput`."""
    import subprocess
    import sys

    from undertow.quantization import NONE

    if scheme == NONE:
        return
    ask = (
        "import sys\nfrom undertow.nn.quantized import require_scheme\nfrom undertow.errors import InvalidInput\n"
        "try:\n    require_scheme(*sys.argv[1:])\nexcept InvalidInput as error:\n    sys.exit(error.remedy)"
    )
    answer = subprocess.run([sys.executable, "-c", ask, scheme, device], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise InvalidInput("--quantize", repr(scheme), f"a scheme that {device} computes", answer.stderr.strip())


def _require_there(device: str) -> None:
    """Asks torch in a process of its own, since this one never imports it. Errors: `InvalidInput`."""
    import subprocess
    import sys

    if device == "cpu":
        return
    ask = "import sys, torch; torch.empty(0, device=sys.argv[1])"
    answer = subprocess.run([sys.executable, "-c", ask, device], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        missing = "this machine has no such device, or this PyTorch was built without support for it"
        raise InvalidInput("--device", repr(device), "a device of this machine", missing)
