"""What arrives and when: the same trace for every server that is measured."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

PROMPTS = (
    "red apple on white background",
    "cat face on blue background",
    "rocket left of owl on pink background",
    "green tree on yellow background",
)
ADAPTERS = ("mosaic", "line-drawing", None, None)
"""Half of the requests name a LoRA, and not the same one."""
STEPS = (8, 12, 20, 30)
GUIDANCE = (3.0, 5.0, 7.0)


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A request that comes `at` seconds after the start, whatever happened to those before (open loop)."""

    at: float
    prompt: str
    seed: int
    steps: int
    guidance_scale: float
    adapter: str | None
    count: int


def poisson(steps_per_s: float, duration_s: float, seed: int, *, adapters: bool = True) -> list[Arrival]:
    """Requests whose distances in time are exponential, and whose work is `steps_per_s` over the whole time: few
    requests, each drawn by chance, would else be far more or less work than is said. adapters: whether some name
    one."""
    chance = random.Random(seed)
    found: list[Arrival] = []
    at = 0.0
    while steps_of(found) < steps_per_s * duration_s:
        at += chance.expovariate(1.0)
        found.append(_arrival(chance, at, adapters=adapters))
    return [replace(one, at=one.at * duration_s / at) for one in found]


def burst(count: int, seed: int, *, adapters: bool = True) -> list[Arrival]:
    """Requests that all come at once: what a server does with them in a second is its capacity."""
    chance = random.Random(seed)
    return [_arrival(chance, 0.0, adapters=adapters) for _ in range(count)]


def _arrival(chance: random.Random, at: float, *, adapters: bool) -> Arrival:
    drawn = chance.choice(ADAPTERS)
    return Arrival(
        at=at,
        prompt=chance.choice(PROMPTS),
        seed=chance.randrange(2**31),
        steps=chance.choice(STEPS),
        guidance_scale=chance.choice(GUIDANCE),
        adapter=drawn if adapters else None,
        count=chance.choice((1, 1, 1, 2)),
    )


def steps_of(arrivals: Sequence[Arrival]) -> int:
    """Steps of all pictures together, which is the work that they are."""
    return sum(one.steps * one.count for one in arrivals)
