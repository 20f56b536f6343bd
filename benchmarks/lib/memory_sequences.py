"""Random sequences of requests for the memory soak: models that alternate, adapters, samplers, sizes, budgets,
cancellations, forwards that run out of memory, and what was cancelled asked for again."""

import hashlib
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

import torch
from torch import nn

import undertow
from tests.adapters.beside import picture
from undertow import Adapter, GenerationRequest, RequestFailed, RunOptions, UNetService
from undertow.engine.events import StepEvent
from undertow.engine.result import GenerationResult
from undertow.memory.ladder import StepDown

Event = Literal["plain", "cancel", "run out"]

SAMPLERS = ("euler", "euler_a", "dpmpp_2m", "dpmpp_2m_sde", "heun")
SIZES = ((32, 32), (48, 32), (64, 64), (128, 96))
DECODES_SHORT = 0.3
"""Of the requests that run out of memory, those that do so while they are decoded too."""
SHORTEST_BUDGET, LONGEST_BUDGET = 0.8, 1.3
"""Of what a model's weights take, most of which is in the text encoders of these tiny ones: from too little for any
picture to more than is needed."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A model and the adapters that fit it. loras: that are merged. beside: those that read a picture. attention: as in
    `load`."""

    model: Path
    loras: Sequence[Path]
    beside: Sequence[Path] = ()
    attention: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A picture of a sequence, and what it takes to draw it again. event: what happened meanwhile."""

    sequence: int
    model: Path
    request: GenerationRequest
    course: tuple[StepDown, ...]
    event: Event
    evictions: int
    digest: str
    attention: str = "auto"


class Soak:
    """Services that live on through all sequences. counts: of what happened."""

    def __init__(self, places: Sequence[Place]):
        self._places = list(places)
        self._services = {place.model: _service(place) for place in places}
        self._sizes = {model: _weights(service) for model, service in self._services.items()}
        self.counts: dict[str, int] = {}

    def sequence(self, number: int, events: int = 2) -> list[Drawn]:
        """Draws a sequence; only what was finished is returned."""
        random, found = Random(number), []
        again: tuple[Place, GenerationRequest] | None = None
        for _ in range(events):
            place = random.choice(self._places)
            request = _request(random, place)
            if again is not None and random.random() < 0.5:
                (place, request), again = again, None
                self._count("resumed")
            event: Event = random.choices(("plain", "cancel", "run out"), (4, 2, 4))[0]
            result = self._draw(random, place, request, event)
            if result is None:
                continue
            if result.report.cancelled:
                self._count("cancelled")
                again = place, request
                continue
            memory = result.report.memory
            found.append(
                Drawn(
                    sequence=number,
                    model=place.model,
                    request=request,
                    course=memory.course,
                    event=event,
                    evictions=memory.evictions,
                    digest=digest(result),
                    attention=place.attention,
                )
            )
        return found

    def _draw(self, random: Random, place: Place, request: GenerationRequest, event: Event) -> GenerationResult | None:
        """`None` for a request that failed for want of memory."""
        service, low_vram, budget = self._services[place.model], False, None
        match random.choice(("none", "low_vram", "budget", "budget")):
            case "low_vram":
                low_vram = True
            case "budget":
                budget = int(self._sizes[place.model] * random.uniform(SHORTEST_BUDGET, LONGEST_BUDGET))
            case _:
                pass
        handle = service.engine.submit(
            request,
            _cancelling(random.randint(0, request.steps - 1)) if event == "cancel" else None,
            options=RunOptions(low_vram=low_vram, budget_bytes=budget),
        )
        first, times = random.randint(1, 4), random.randint(1, 7)
        model, decodes = service.engine.model, random.random() < DECODES_SHORT
        times = times if event == "run out" else 0
        with (
            _running_out(model.require_unet(), first, times),
            _running_out(model.require_vae().decoder.conv_in, 1, min(times, 2) if decodes else 0),
        ):
            try:
                return handle.result()
            except RequestFailed as error:
                if not isinstance(error.__cause__, MemoryError | torch.OutOfMemoryError):
                    raise
                self._count("failed for want of memory")
                return None

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1


def drawn_anew(one: Drawn) -> str:
    """The digest of the same request by a service that was just loaded, with the same course."""
    service = undertow.load(one.model, dtype=torch.float32, attention=one.attention)
    return digest(service.run(one.request, course=one.course))


def digest(result: GenerationResult) -> str:
    """SHA-256 over pixels and latents."""
    found = hashlib.sha256()
    for image in result.images:
        found.update(image.tobytes())
    found.update(result.latents.contiguous().numpy().tobytes())
    return found.hexdigest()


def _service(place: Place) -> UNetService:
    service = undertow.load(place.model, dtype=torch.float32, lazy=True, attention=place.attention)
    service.engine.memory.others_bytes = 0  # budgets count tensors alone
    return service


def _weights(service: UNetService) -> int:
    model = service.engine.model
    networks = (model.require_unet(), model.require_vae(), *model.require_text().encoders)
    return sum(one.nbytes for network in networks for one in network.parameters())


def _request(random: Random, place: Place) -> GenerationRequest:
    loras = random.sample(list(place.loras), random.randint(0, len(place.loras)))
    beside = random.sample(list(place.beside), random.choice((0, 0, 1, 2)) if place.beside else 0)
    size, seen = random.choice(SIZES), random.randrange(1000)
    return GenerationRequest(
        prompt=random.choice(("a cat", "a red boat", "two dogs")),
        steps=random.randint(1, 3),
        count=random.randint(1, 2),
        seed=random.randrange(1000),
        size=size,
        sampler=random.choice(SAMPLERS),
        guidance_scale=random.choice((1.0, 5.0)),
        adapters=(
            *(Adapter(source=one, scale=random.choice((0.5, 1.0))) for one in loras),
            *(Adapter(source=one, image=picture(seen, size[1], size[0])) for one in beside),
        ),
    )


def _cancelling(step: int) -> Callable[[StepEvent], None]:
    def observe(event: StepEvent) -> None:
        if event.step == step:
            event.cancel()

    return observe


@contextmanager
def _running_out(network: nn.Module, first: int, times: int) -> Generator[None]:
    """Inside, some forwards of a network run out of memory: `times` of them, from the `first` on."""
    calls = 0

    def called(*_: object) -> None:
        nonlocal calls
        calls += 1
        if first <= calls < first + times:
            raise torch.OutOfMemoryError("tried to allocate 40.00 GiB")

    hook = network.register_forward_pre_hook(called)
    try:
        yield
    finally:
        hook.remove()
