"""The kinds of adapters, and which of them a file is: by names and shapes alone, since names of files lie."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from undertow.adapters.control.kind import ControlKind
from undertow.adapters.files.opened import OpenedAdapter, open_adapter
from undertow.adapters.image_prompt.kind import ImagePromptKind
from undertow.adapters.kind import AdapterKind
from undertow.adapters.lora.kind import LoraKind
from undertow.checkpoints.identify.unsupported import refuse_other_files, refuse_other_networks, refuse_quantized
from undertow.checkpoints.keymap.contents import read_contents
from undertow.checkpoints.keymap.prefixes import TITLES
from undertow.errors import UnknownCheckpoint

AnyKind = AdapterKind[Any, Any, Any]

KINDS: tuple[type[AnyKind], ...] = (ControlKind, ImagePromptKind, LoraKind)
"""In the order in which a file is offered to them."""


def identify(opened: OpenedAdapter, kinds: Sequence[type[AnyKind]] = KINDS) -> tuple[type[AnyKind], str]:
    """The kind of an opened file, and what the file is, with an article ("a LoRA").

    Errors: `UnsupportedModel` with the reason, for formats that undertow does not run; `UnknownCheckpoint`.
    """
    refuse_quantized(opened.path, opened.names, opened.weights.metadata)
    for kind in kinds:
        title = kind.identify(opened)
        if title is not None:
            return kind, title
    raise _stranger(opened)


def adapter_title(source: str | Path) -> str:
    """What the adapter at `source` is ("a LoRA"): a safetensors file, a pickle (.bin, .pth), a folder, or on the Hub.

    Errors: those of `open_adapter` and `identify`.
    """
    with open_adapter(source) as opened:
        return identify(opened)[1]


def _stranger(opened: OpenedAdapter) -> UnknownCheckpoint:
    """The error for a file that is not an adapter. Errors: `UnsupportedModel` for other models that are recognized."""
    path, tensors = opened.path, opened.tensors
    remedy = "give a LoRA, a ControlNet, a T2I-Adapter or an IP-Adapter"
    refuse_other_networks(path, opened.names)
    parts = read_contents(tensors).parts
    if parts:
        held = ", ".join(TITLES[part] for part in parts)
        return UnknownCheckpoint(path, f"a model of its own ({held}), not an adapter", f"load it as one, or {remedy}")
    refuse_other_files(path, opened.names)
    if not tensors:
        return UnknownCheckpoint(path, "it holds no tensors", remedy)
    some = ", ".join(repr(name) for name in list(tensors)[:3])
    return UnknownCheckpoint(path, f"none of its {len(tensors)} tensors is called as in an adapter ({some})", remedy)
