"""Probes: functions that observe, or replace, tensors inside a U-Net, one row at a time."""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from undertow.engine.rows import Origin, Row
from undertow.errors import InvalidInput
from undertow.inspection.sites import VAE, concerns_forward, named, of_part, sites_in
from undertow.unet.unet import UNet

Side = Literal["input", "output"]


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a probe is called. module: its name. kind: its class. side: whether the tensor comes in or
    goes out. origin: of the row. call: counts from 0 where one forward calls the module several times (a feed-forward
    layer that computes in parts)."""

    module: str
    kind: str
    side: Side
    origin: Origin
    call: int = 0


Probe = Callable[[Site, Tensor], Tensor | None]
"""Receives a row's tensor [1, ...] and returns `None`, or what takes its place: of the same shape, type and device."""


def every_row(origin: Origin) -> bool:
    """All rows."""
    del origin
    return True


@dataclass(frozen=True, kw_only=True, eq=False)
class ModuleProbe:
    """A probe on modules, for `Engine.probes`.

    patterns: of names of modules, with * and ?, such as "up_blocks.*.attn2.to_q"; "" is the U-Net itself. Those of
    ControlNets begin with "controlnet." and the adapter's title, those of text encoders with "text_encoder." or
    "text_encoder_2.", and what is observed of the autoencoder with "vae." ("vae.decoder.*"). probe: called with the
    first tensor that the module receives, or with what it returns. rows: which rows concern it.

        engine.probes.append(ModuleProbe(patterns=("mid_block",), probe=lambda site, x: print(site.origin, x.std())))
    """

    patterns: tuple[str, ...]
    probe: Probe
    side: Side = "output"
    rows: Callable[[Origin], bool] = field(default=every_row)

    def wants(self, rows: Sequence[Row]) -> bool:
        return concerns_forward(self.patterns, rows) and any(self.rows(row.origin) for row in rows)

    @contextmanager
    def attached(self, unet: UNet, rows: Sequence[Row]) -> Generator[None]:
        """Errors: `InvalidInput` for a pattern that matches no module, and for a replacement that is no tensor of
        the same shape."""
        with ExitStack() as until:
            for name, module, own in sites_in(rows, self.patterns):
                until.callback(self._hook(name, module, [row.origin for row in own]).remove)
            yield

    def wants_part(self, part: str, origin: Origin) -> bool:
        return bool(of_part(self.patterns, part)) and self.rows(origin)

    @contextmanager
    def inside(self, part: str, network: nn.Module, origin: Origin) -> Generator[None]:
        """As `engine.probing.PartProbe`: every row of the texts' chunks is the request's."""
        with ExitStack() as until:
            for name, module in named(network, of_part(self.patterns, part), part):
                until.callback(self._hook(name, module, origin).remove)
            yield

    def sees(self, name: str, kind: str, origin: Origin, output: Tensor) -> None:
        """As `engine.probing.PartProbe`. Errors: `InvalidInput` for an answer: steps of the autoencoder, which may
        compute a picture in parts that overlap, are observed."""
        if self.side == "input" or not any(fnmatchcase(name, one) for one in of_part(self.patterns, VAE)):
            return
        site = Site(module=name, kind=kind, side="output", origin=origin)
        if self.probe(site, output) is not None:
            raise InvalidInput(f"the probe's answer at {name}", "a tensor", "None: the autoencoder is observed alone")

    def _hook(
        self, name: str, module: nn.Module, origins: Sequence[Origin] | Origin
    ) -> torch.utils.hooks.RemovableHandle:
        calls = iter(range(10**9))

        def see(tensor: Tensor) -> Tensor:
            call = next(calls)
            of_rows = [origins] * len(tensor) if isinstance(origins, Origin) else origins
            sites = [
                Site(module=name, kind=type(module).__name__, side=self.side, origin=origin, call=call)
                for origin in of_rows
            ]
            return self._seen(sites, tensor)

        def before(module: nn.Module, inputs: tuple[object, ...]) -> tuple[object, ...] | None:
            del module
            first = inputs[0] if inputs else None
            if not isinstance(first, Tensor):
                return None
            found = see(first)
            return None if found is first else (found, *inputs[1:])

        def after(module: nn.Module, inputs: tuple[object, ...], output: object) -> object:
            del module, inputs
            return see(output) if isinstance(output, Tensor) else output

        if self.side == "input":
            return module.register_forward_pre_hook(before)
        return module.register_forward_hook(after)

    def _seen(self, sites: Sequence[Site], tensor: Tensor) -> Tensor:
        """The tensor itself while nothing replaces a row of it. Tensors of which the batch shares one row are nobody's
        alone and are left out."""
        if tensor.ndim == 0 or tensor.shape[0] < len(sites):
            return tensor
        found = tensor
        for index, site in enumerate(sites):
            if not self.rows(site.origin):
                continue
            row = tensor[index : index + 1]
            instead = self.probe(site, row)
            if instead is None:
                continue
            where = f"the probe's answer at {site.module or 'the U-Net'}"
            if not isinstance(instead, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidInput(where, repr(instead), "None, or a tensor")
            if instead.shape != row.shape or instead.dtype != row.dtype or instead.device != row.device:
                raise InvalidInput(
                    where,
                    f"{tuple(instead.shape)} {instead.dtype} on {instead.device}",
                    f"None, or {tuple(row.shape)} {row.dtype} on {row.device}, as it received",
                )
            found = tensor.clone() if found is tensor else found
            found[index : index + 1] = instead
        return found
