"""Layers that are in memory only while they work."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from undertow.memory.component import Component, Part
from undertow.memory.copies import CopyQueue
from undertow.shortage import is_out_of_memory

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
    network's weights are absent before and after. require: raises when there is no room. has_room: asks the same.
    moved: called when weights came or left.

    copies: with a second queue the next group is copied while one computes, in the order in which groups were called
    when it was entered before; so two groups are in memory at a time.
    """

    def __init__(
        self,
        component: Component,
        network: nn.Module,
        *,
        quiet: Callable[[], AbstractContextManager[None]],
        moved: Callable[[], None],
        require: Callable[[int], None],
        has_room: Callable[[int], bool] = lambda size_bytes: True,
        copies: CopyQueue | None = None,
    ):
        self._groups = list(layer_groups(component, network))
        self._quiet, self._moved, self._require, self._has_room = quiet, moved, require, has_room
        self._copies = copies
        self._hooks: list[RemovableHandle] = []
        self._called: list[LayerGroup] = []
        self._next: dict[LayerGroup | None, LayerGroup] = {}
        self._underway: dict[LayerGroup, object] = {}

    def __enter__(self) -> None:
        for group in self._groups:
            self._hooks.append(group.module.register_forward_pre_hook(self._coming(group), prepend=True))
            self._hooks.append(group.module.register_forward_hook(self._leaving(group), always_call=True))
        self._called.clear()
        self._copy_ahead(None)

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for group in self._groups:
            self._arrive(group)
            self._drop(group)
        self._next = dict(zip([None, *self._called], self._called, strict=False))

    def _coming(self, group: LayerGroup) -> Callable[..., None]:
        def come(*_: Any) -> None:
            if not self._arrive(group):
                self._require(group.part.size_bytes(group.names & group.part.absent))
                self._bring_in(group)
            self._called.append(group)
            self._copy_ahead(group)

        return come

    def _leaving(self, group: LayerGroup) -> Callable[..., None]:
        return lambda *_: self._drop(group)

    def _copy_ahead(self, current: LayerGroup | None) -> None:
        """Begins to copy the group that was called after the current one last time, if there is room for it."""
        group = self._next.get(current)
        if self._copies is None or group is None or group in self._underway:
            return
        size_bytes = group.part.size_bytes(group.names & group.part.absent)
        if not size_bytes or not self._has_room(size_bytes):
            return
        try:
            with self._copies.beside():
                self._bring_in(group)
            self._underway[group] = self._copies.mark()
        except Exception as error:
            if not is_out_of_memory(error):
                raise  # else it comes when it is called, once this one has left

    def _arrive(self, group: LayerGroup) -> bool:
        """Has what is computed next wait for a group that is underway; returns whether it was."""
        mark = self._underway.pop(group, None)
        if mark is None or self._copies is None:
            return False
        self._copies.wait(mark, [group.part.parameters[name] for name in sorted(group.names)])
        return True

    def _bring_in(self, group: LayerGroup) -> None:
        with self._quiet(), torch.inference_mode(False), torch.no_grad():
            group.part.bring_in(group.names)
        self._moved()

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
