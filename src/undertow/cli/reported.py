"""`undertow generate --report`: a page beside the pictures."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from undertow.errors import InvalidInput
from undertow.pictures.names import require_file

if TYPE_CHECKING:
    from undertow.engine.result import GenerationResult
    from undertow.service import UNetService


@dataclass(kw_only=True)
class Reported:
    """What was drawn meanwhile. page: that was written of it."""

    results: "list[GenerationResult]" = field(default_factory=list)
    page: Path | None = None


def require_report(path: Path, requests: int, *, overwrite: bool) -> None:
    """Errors: `InvalidInput` for another kind of file, for several requests, whose pictures have one page each, for a
    file that is there and may not be replaced, and for a place that takes no file."""
    if path.suffix.lower() != ".html":
        raise InvalidInput("--report", str(path), "a file that ends in .html")
    if requests > 1:
        raise InvalidInput("--report", str(path), "nothing with several prompts", "draw one of them with it")
    require_file(path, "--report", overwrite=overwrite)


@contextmanager
def reported(service: "UNetService", path: Path | None) -> Generator[Reported]:
    """Watches the engine meanwhile, and writes the page behind it; nothing without a path, or a picture."""
    found = Reported()
    if path is None:
        yield found
        return
    from undertow.inspection.profile import Profiler
    from undertow.inspection.report import save_report

    with Profiler(service.engine) as profiler:
        yield found
    for result in found.results:
        if result.images:
            save_report(path, result, profiler.profile(result.report))
            found.page = path
