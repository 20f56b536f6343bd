"""Probes: functions that observe, or replace, tensors inside a U-Net, one row at a time."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from undertow.doors import nearest
from undertow.engine.rows import Origin, Row
from undertow.errors import InvalidInput
from undertow.unet.unet import UNet

Side = Literal["input", "output"]


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a probe is called. module: its name in the U-Net. kind: its class. side: whether the tensor comes in or
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

    patterns: of names of modules, with * and ?, such as "up_blocks.*.attn2.to_q"; "" is the U-Net itself. probe: called
    with the first tensor that the module receives, or with what it returns. rows: which rows concern it.

        engine.probes.append(ModuleProbe(patterns=("mid_block",), probe=lambda site, x: print(site.origin, x.std())))
    """

    patterns: tuple[str, ...]
    probe: Probe
    side: Side = "output"
    rows: Callable[[Origin], bool] = field(default=every_row)

    def wants(self, rows: Sequence[Row]) -> bool:
        return any(self.rows(row.origin) for row in rows)

    @contextmanager
    def attached(self, unet: UNet, rows: Sequence[Row]) -> Generator[None]:
        """Errors: `InvalidInput` for a pattern that matches no module, and for a replacement that is no tensor of
        the same shape."""
        handles = [self._hook(name, unet.get_submodule(name), rows) for name in matching(unet, self.patterns)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str, module: nn.Module, rows: Sequence[Row]) -> torch.utils.hooks.RemovableHandle:
        calls = iter(range(10**9))

        def see(tensor: Tensor) -> Tensor:
            call = next(calls)
            sites = [
                Site(module=name, kind=type(module).__name__, side=self.side, origin=row.origin, call=call)
                for row in rows
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


def matching(unet: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the modules that patterns match, in their order in the network. Errors: `InvalidInput` for a pattern
    that matches none."""
    names = [name for name, _ in unet.named_modules()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InvalidInput("pattern", repr(pattern), "one that matches a module", nearest(pattern, names))
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def joined(prefix: str, name: str) -> str:
    """The name of a module of a network whose modules' names begin with `prefix`."""
    return f"{prefix}.{name}" if prefix and name else prefix or name
