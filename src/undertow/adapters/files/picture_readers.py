"""Which adapters read a picture, told by their files' names for tensors alone. Imports no torch, so that one without
its picture is refused before a model is loaded; the kinds of adapters look closer."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from undertow.adapters.adapter import Adapter
from undertow.checkpoints.files.atomic import read_json
from undertow.checkpoints.files.header_json import read_header_json
from undertow.checkpoints.files.sniff import sniff
from undertow.errors import CheckpointError, InvalidInput
from undertow.pictures.files import several

CONFIG = "config.json"
CLASSES: Mapping[str, str] = {"ControlNetModel": "ControlNet", "T2IAdapter": "T2I-Adapter"}
"""What diffusers' `_class_name` says in the folder of a control network."""

SIGNS: Mapping[str, tuple[str, ...]] = {
    "Control-LoRA": ("lora_controlnet",),
    "ControlNet": ("zero_convs.0.0.weight", "controlnet_cond_embedding.conv_in.weight"),
    "T2I-Adapter": ("body.0.block1.weight", "body.0.body.0.block1.weight", "body.0.resnets.0.block1.weight"),
    "IP-Adapter": (".to_k_ip.weight", "to_k_ip.0.weight"),
}
"""How the name of a tensor ends that every file of a kind has."""

IMAGE_PROMPT = "IP-Adapter"


def picture_reader(place: Path) -> str | None:
    """What kind of adapter that reads a picture is there; `None` for others, and for files that tell it only once they
    are opened (pickles)."""
    files = [place] if place.is_file() else sorted(place.glob("*.safetensors"))
    try:
        if (place / CONFIG).is_file():
            named = CLASSES.get(str(read_json(place / CONFIG).get("_class_name")))
            if named is not None:
                return named
        names = [name for file in files if sniff(file) == "safetensors" for name in read_header_json(file)[0]]
    except (CheckpointError, OSError, ValueError):  # said in full by who reads it
        return None
    return reader_named(names)


def require_pictures(adapter: Adapter, kind: str, *, several_allowed: bool) -> None:
    """Whether an adapter that reads pictures has any, and no more than it reads. kind: in words. Errors:
    `InvalidInput`."""
    count = len(several(adapter.image))
    if count == 1 or (count > 1 and several_allowed):
        return
    wanted = f"reference pictures for this {kind}" if several_allowed else f"one control map for this {kind}"
    made = "" if several_allowed else "; `undertow preprocess` makes one from a picture"
    remedy = f"give it as --adapter {adapter.title}=PICTURE, or Adapter({adapter.title!r}, image=...){made}"
    raise InvalidInput(f"image of {adapter.title}", "missing" if not count else f"{count} pictures", wanted, remedy)


def reader_named(names: Iterable[str]) -> str | None:
    """The kind of adapter that reads a picture whose tensors are called so; `None` for others."""
    found = list(names)
    return next((kind for kind, ends in SIGNS.items() if any(name.endswith(ends) for name in found)), None)
