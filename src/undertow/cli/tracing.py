"""`undertow generate --trace`: what passes every layer, as JSON lines in a file."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from undertow.errors import InvalidInput
from undertow.pictures.names import require_file

if TYPE_CHECKING:
    from undertow.service import UNetService


def require_trace(path: Path) -> None:
    """Errors: `InvalidInput` for a place that takes no file, and for a file that is there."""
    require_file(path, "--trace")
    if path.exists():
        raise InvalidInput("--trace", str(path), "a file that is not there yet", "choose another name, or remove it")


@contextmanager
def tracing(service: "UNetService", path: Path | None) -> Generator[None]:
    """Writes each record as it comes, so that an interrupted request leaves what it had."""
    if path is None:
        yield
        return
    recorder = service.enable_layer_hooks()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        recorder.told = lambda record: print(record.to_json(), file=file)
        try:
            yield
        finally:
            service.disable_layer_hooks()
