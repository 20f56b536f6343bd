"""`--embedding FILE`: textual inversions that are added to the model once it is loaded."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from undertow.checkpoints.files.place import local_path
from undertow.cli.named_files import readable
from undertow.engine.request import GenerationRequest

if TYPE_CHECKING:
    from undertow.service import UNetService


def require_embeddings(sources: Sequence[str]) -> None:
    """Errors: `UnknownCheckpoint` for a file that is not there, `OSError` for one that may not be read."""
    for source in sources:
        readable(local_path(source))


def with_embeddings(
    requests: Sequence[GenerationRequest], service: "UNetService", sources: Sequence[str]
) -> list[GenerationRequest]:
    """The requests, which rely on the embeddings in these files; they are known to the service afterwards. Errors:
    those of `UNetService.add_embedding`."""
    if not sources:
        return list(requests)
    names = tuple(dict.fromkeys(name for source in sources for name in service.add_embedding(source)))
    return [replace(request, embeddings=names) for request in requests]
