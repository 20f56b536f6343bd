"""Layers that are in memory only while they work."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from undertow.memory.component import Component, Part

GROUPS = 16
"""A group of layers is a module of at most this part of the network's weights."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerGroup:
    """A module whose layers come and go together, and the names of its weights in `part`."""

    module: nn.Module
    part: Part
    names: frozenset[str]

    @property
    def size_bytes(self) -> int:
        return self.part.size_bytes(self.names)


class LayerStream:
    """While it is entered, the layers of a network come in when they are called and leave afterwards, in groups. The
    network's weights are absent before and after. require: raises when there is no room. moved: called when weights
    came or left."""

    def __init__(
        self,
        component: Component,
        network: nn.Module,
        *,
        quiet: Callable[[], AbstractContextManager[None]],
        moved: Callable[[], None],
        require: Callable[[int], None],
    ):
        self._groups = list(layer_groups(component, network))
        self._quiet, self._moved, self._require = quiet, moved, require
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> None:
        for group in self._groups:
            self._hooks.append(group.module.register_forward_pre_hook(self._coming(group), prepend=True))
            self._hooks.append(group.module.register_forward_hook(self._leaving(group), always_call=True))

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        for group in self._groups:
            self._drop(group)

    def _coming(self, group: LayerGroup) -> Callable[..., None]:
        def come(*_: Any) -> None:
            self._require(group.part.size_bytes(group.names & group.part.absent))
            with self._quiet(), torch.inference_mode(False), torch.no_grad():
                group.part.bring_in(group.names)
            self._moved()

        return come

    def _leaving(self, group: LayerGroup) -> Callable[..., None]:
        return lambda *_: self._drop(group)

    def _drop(self, group: LayerGroup) -> None:
        with self._quiet(), torch.inference_mode(False), torch.no_grad():
            group.part.drop(group.names - group.part.absent)
        self._moved()


def layer_groups(component: Component, network: nn.Module) -> Iterator[LayerGroup]:
    """The largest modules of at most a `GROUPS`th of a network's weights, and single layers beyond that, which together
    have all of its weights."""
    (part,) = component.parts
    names = {id(parameter): name for name, parameter in part.parameters.items()}
    limit = part.size_bytes(part.parameters) // GROUPS

    def walk(module: nn.Module) -> Iterator[LayerGroup]:
        inside = frozenset(names[id(one)] for one in module.parameters() if id(one) in names)
        has_own = any(id(one) in names for one in module.parameters(recurse=False))
        # Containers are never called themselves.
        small = not isinstance(module, nn.ModuleList) and part.size_bytes(inside) <= limit
        if inside and (has_own or small):
            yield LayerGroup(module=module, part=part, names=inside)
        else:
            for child in module.children():
                yield from walk(child)

    yield from walk(network)
