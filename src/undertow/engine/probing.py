"""What looks into networks while they are evaluated; the engine attaches it around one forward and takes it off."""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from undertow.engine.rows import Origin, Row
from undertow.unet.runner import EAGER, Runner
from undertow.unet.unet import UNet


@runtime_checkable
class ForwardProbe(Protocol):
    """Looks into forwards of U-Nets, or changes what flows in them."""

    def wants(self, rows: Sequence[Row]) -> bool:
        """Whether a forward of these rows concerns it. Every other forward runs as if it did not exist."""
        ...

    def attached(self, unet: UNet, rows: Sequence[Row]) -> AbstractContextManager[None]:
        """Looks into the network meanwhile, whose batch begins with these rows; what the batch was padded with follows
        them. Nothing of it is left in the network afterwards."""
        ...


class OwnForwards:
    """Base of probes that are told of the forwards of requests alone: not of the one more evaluation that finds where
    numbers stopped being finite, whose time and calls say nothing of the network."""


TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
"""What the modules' names of a model's text encoders begin with, as diffusers names them."""


@runtime_checkable
class PartProbe(Protocol):
    """A probe that looks into text encoders, or sees what the autoencoder decodes, as well."""

    def wants_part(self, part: str, origin: Origin) -> bool:
        """Whether "text_encoder", "text_encoder_2" or "vae" concerns it, for this request and picture."""
        ...

    def inside(self, part: str, network: nn.Module, origin: Origin) -> AbstractContextManager[None]:
        """Looks into a text encoder meanwhile, whose rows are those of one request's texts."""
        ...

    def sees(self, name: str, kind: str, origin: Origin, output: Tensor) -> None:
        """Is shown what a step of the autoencoder gave, or a part of it where pictures are decoded in parts."""
        ...


@runtime_checkable
class Forgetful(Protocol):
    """A probe that adds up what it sees, of the evaluations that pictures are drawn with alone."""

    def forget(self, rows: Sequence[Row]) -> None:
        """What the newest evaluation of each of these rows gave does not count: they are evaluated once more."""
        ...


def forget(probes: Sequence[ForwardProbe], rows: Sequence[Row]) -> None:
    """Tells the probes that add up."""
    for probe in probes:
        if isinstance(probe, Forgetful):
            probe.forget(rows)


def named_networks(rows: Sequence[Row]) -> list[tuple[str, nn.Module, list[Row]]]:
    """The networks that a forward of these rows evaluates: what its modules' names begin with, and the rows of its
    batch, in order. That of the U-Net is empty; ControlNets run before it, for the rows in which they act."""
    found: list[tuple[str, nn.Module, list[Row]]] = [("", rows[0].unet, list(rows))]
    for row in rows:
        for name, network in () if row.adapters is None else row.adapters.named_networks:
            place = next((one for one in found if one[1] is network), None)
            if place is None:
                place = (name, network, [])
                found.append(place)
            place[2].append(row)
    return found


def attach(probes: Sequence[ForwardProbe], rows: Sequence[Row], runner: Runner, until: ExitStack) -> Runner:
    """Attaches the probes that want a forward of these rows, until the stack is left, and returns what runs it: graphs
    are made of the layers as they are without hooks, so a forward that is looked into runs eagerly as a whole."""
    wanting = [probe for probe in probes if probe.wants(rows)]
    for probe in wanting:
        until.enter_context(probe.attached(rows[0].unet, rows))
    return runner if runner.capabilities.observable or not wanting else EAGER


class HiddenNumbers:
    """Looks at the queries and keys of attentions, of ControlNets too: fused kernels on CPUs give finite numbers for
    some that are not, and the prediction tells nothing then. The ranges are read once, after the forward."""

    def __init__(self) -> None:
        self._ranges: dict[tuple[int, ...], list[Tensor]] = {}

    def wants(self, rows: Sequence[Row]) -> bool:
        return True

    @contextmanager
    def attached(self, unet: UNet, rows: Sequence[Row]) -> Generator[None]:
        with ExitStack() as until:
            for _, network, own in named_networks(rows):
                places = tuple(next(i for i, one in enumerate(rows) if one is row) for row in own)
                see = self._seeing(places)
                for name, module in network.named_modules():
                    if name.endswith((".to_q", ".to_k")):
                        until.callback(module.register_forward_hook(see).remove)
            yield

    def _seeing(self, places: tuple[int, ...]) -> Callable[[nn.Module, object, Tensor], None]:
        """A hook. places: in the forward, of the rows of the network's batch."""
        ranges = self._ranges.setdefault(places, [])

        def see(module: nn.Module, inputs: object, output: Tensor) -> None:
            del module, inputs
            own = output[: len(places)].flatten(1)
            ranges.append(torch.stack([torch.stack(row.aminmax()) for row in own]))

        return see

    def rows(self, count: int) -> list[bool]:
        """Of each row of a forward, whether all are finite."""
        finite = [True] * count
        for places, ranges in self._ranges.items():
            if ranges:
                found = torch.stack(ranges).isfinite().all(dim=2).all(dim=0).tolist()
                for place, sound in zip(places, found, strict=True):
                    finite[place] = finite[place] and sound
        return finite
