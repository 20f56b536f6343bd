"""A second queue of an accelerator, on which weights are copied while layers compute."""

from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

import torch

from undertow.shapes import AnyTensor


@runtime_checkable
class CopyQueue(Protocol):
    """Copies beside what a device computes. Nothing waits in Python: the queues of the device wait for each other."""

    def beside(self) -> AbstractContextManager[None]:
        """What is copied inside is queued beside what is computed."""
        ...

    def mark(self) -> object:
        """The end of everything that was queued for copying so far."""
        ...

    def wait(self, mark: object, tensors: Iterable[AnyTensor]) -> None:
        """What is computed from now on waits for a mark; it uses these tensors, which were copied before."""
        ...


class CudaCopies:
    """A stream of its own. Memory that it allocated is used by the computing stream, and is given to nobody before that
    has come so far (https://docs.pytorch.org/docs/stable/generated/torch.Tensor.record_stream.html)."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)

    @contextmanager
    def beside(self) -> Generator[None]:
        with torch.cuda.stream(self._stream):
            yield

    def mark(self) -> object:
        event = torch.cuda.Event()
        event.record(self._stream)
        return event

    def wait(self, mark: object, tensors: Iterable[AnyTensor]) -> None:
        assert isinstance(mark, torch.cuda.Event)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(mark)
        for tensor in tensors:
            tensor.record_stream(computing)


def copies_beside(device: torch.device) -> CopyQueue | None:
    """The queue of a device; `None` for one that has no second queue, where files are mapped and copied in turn."""
    return CudaCopies(device) if device.type == "cuda" else None
