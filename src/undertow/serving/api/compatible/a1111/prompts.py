"""A1111's prompts: the tags in them that name adapters, and the words that are textual inversions."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from undertow.doors import shown
from undertow.errors import InvalidInput
from undertow.serving.catalog.entries import EMBEDDING, AdapterEntry

_TAG = re.compile(r"<(\w+):([^<>]+)>")
LORA_TAGS = ("lora", "lyco")


def split_prompt(prompt: str) -> tuple[str, list[dict[str, Any]]]:
    """The prompt without its tags, and the adapters that they name: <lora:NAME>, <lora:NAME:SCALE>,
    <lora:NAME:TEXT:UNET>, with te= and unet= for either (extensions-builtin/Lora/extra_networks_lora.py). Errors:
    `InvalidInput` for other tags and for scales that are no numbers."""
    adapters = [_adapter(tag[0], tag[1], tag[2].split(":")) for tag in _TAG.finditer(prompt)]
    return _TAG.sub("", prompt).strip() if adapters else prompt, adapters


def require_no_tags(name: str, prompt: str) -> None:
    """Errors: `InvalidInput` for a tag where A1111 reads none."""
    tag = _TAG.search(prompt)
    if tag is not None:
        raise InvalidInput(name, f"with the tag {tag[0][:60]!r}", "words", "adapters are named in the prompt alone")


def embeddings_in(prompts: Iterable[str], entries: Iterable[AdapterEntry]) -> list[str]:
    """Textual inversions whose words stand in a prompt, by their names."""
    text = "\n".join(prompts)
    return [
        entry.name
        for entry in entries
        if entry.kind == EMBEDDING and any(_stands_in(word, text) for word in entry.words)
    ]


def _stands_in(word: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def _adapter(tag: str, kind: str, arguments: list[str]) -> dict[str, Any]:
    if kind not in LORA_TAGS:
        raise InvalidInput("prompt", f"with the tag {tag[:60]!r}", "tags of LoRA alone", "write <lora:NAME:SCALE>")
    name, *rest = arguments
    numbers = [_number(tag, one) for one in rest if "=" not in one]
    named = {key: _number(tag, value) for key, _, value in (one.partition("=") for one in rest if "=" in one)}
    if len(numbers) > 2 or named.keys() - {"te", "unet"}:
        remedy = "write <lora:NAME:SCALE>, or <lora:NAME:te=0.5:unet=1>"
        raise InvalidInput("prompt", f"with the tag {tag[:60]!r}", "a name and at most two scales", remedy)
    text_scale = named.get("te", numbers[0] if numbers else 1.0)
    scale = named.get("unet", numbers[1] if len(numbers) > 1 else text_scale)
    return {"source": name, "scale": scale, **_unless_equal(text_scale, scale)}


def _unless_equal(text_scale: float, scale: float) -> Mapping[str, float]:
    return {} if text_scale == scale else {"text_scale": text_scale}


def _number(tag: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not abs(number) < float("inf"):
        raise InvalidInput("prompt", f"with the tag {tag[:60]!r}", "finite numbers as scales", f"{shown(text)} is none")
    return number
