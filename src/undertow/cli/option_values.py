"""Values of options that are more than a word or a number."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from undertow.adapters.adapter import Adapter
from undertow.cli.config import read_config
from undertow.cli.named_places import as_numbers, is_one_of, is_place, split_list, split_numbers, split_pair
from undertow.cli.seeds import parse_seed
from undertow.engine.named_adapters import NamedAdapter
from undertow.engine.parts import Region
from undertow.errors import InvalidInput


def parse_regions(texts: Sequence[str] | None) -> tuple[Region, ...]:
    """From PROMPT@LEFT,TOP,RIGHT,BOTTOM, fractions of the picture, perhaps with a weight behind. Errors:
    `InvalidInput`."""
    found = []
    for text in texts or ():
        prompt, mark, numbers = text.rpartition("@")
        values = as_numbers(numbers)
        if not mark or len(values) not in (4, 5):
            raise InvalidInput(
                "--regions", repr(text), "PROMPT@LEFT,TOP,RIGHT,BOTTOM[,WEIGHT]", "for example 'a cat@0,0,0.5,1'"
            )
        left, top, right, bottom, *weight = values
        found.append(Region(prompt=prompt, box=(left, top, right, bottom), weight=weight[0] if weight else 1.0))
    return tuple(found)


def parse_loras(texts: Sequence[str] | None, blocks: dict[str, float]) -> tuple[Adapter, ...]:
    """From FILE, FILE@SCALE or FILE@SCALE,SCALE,...: several scales are spread over the steps. blocks: factors by
    pattern of layer names, for all of them. Errors: `InvalidInput`."""
    found = []
    for text in texts or ():
        source, scales = split_numbers(text)
        scale = 1.0 if not scales else scales[0] if len(scales) == 1 else tuple(scales)
        found.append(Adapter(read_config().find(source), scale=scale, blocks=blocks if blocks else None))
    return tuple(found)


def parse_adapters(
    texts: Sequence[str] | None, masks: Sequence[str] | None, loras: Sequence[Adapter] = ()
) -> tuple[Adapter, ...]:
    """From FILE[@SCALE[,SCALE...]][=PICTURE[,PICTURE...]]. masks: NAME=PICTURE[,PICTURE...], by the file's name without
    its ending. loras: those beside them, which take no mask. Errors: `InvalidInput`."""
    found = []
    for text in texts or ():
        source, pictures = _source_and_pictures(text)
        (adapter,) = parse_loras([source], {})
        found.append(replace(adapter, image=None if pictures is None else split_list(pictures)))
    titles = [adapter.title for adapter in found]
    places = dict(_pictures_by_name("--adapter-mask", text, titles) for text in masks or ())
    found = [replace(adapter, mask=places.pop(adapter.title, None)) for adapter in found]
    if places:
        known, unmasked = ", ".join(titles), sorted(places.keys() & {lora.title for lora in loras})
        remedy = f"{unmasked[0]} is a LoRA, which acts on the whole picture" if unmasked else ""
        expected = f"names that --adapter gives: {known or 'there are none'}"
        raise InvalidInput("--adapter-mask", ", ".join(places), expected, remedy)
    return tuple(found)


def _source_and_pictures(text: str) -> tuple[str, str | None]:
    """The two sides of --adapter; the scale is on the left."""
    return split_pair(text, lambda left: is_place(split_numbers(left)[0]))


def named_adapters(options: Mapping[str, Any]) -> tuple[NamedAdapter, ...]:
    """The adapters of options, each with the fields that were typed of it. Errors: `InvalidInput`."""
    loras, adapters = options.get("loras") or (), options.get("adapters") or ()
    blocks = numbers_by_name("--lora-block", options.get("lora_blocks"))
    found = []
    read = parse_loras(loras, blocks)
    for text, adapter in zip(loras, read, strict=True):
        typed = {"scale": split_numbers(text)[1], "blocks": blocks}
        found.append(NamedAdapter(adapter=adapter, typed=_given(typed), is_lora=True))
    others = parse_adapters(adapters, options.get("adapter_masks"), read)
    for text, adapter in zip(adapters, others, strict=True):
        source, pictures = _source_and_pictures(text)
        typed = {"scale": split_numbers(source)[1], "image": pictures is not None, "mask": adapter.mask is not None}
        found.append(NamedAdapter(adapter=adapter, typed=_given(typed)))
    return tuple(found)


def _given(typed: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(name for name, value in typed.items() if value)


def _pictures_by_name(option: str, text: str, names: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    name, pictures = split_pair(text, is_one_of(names))
    if not pictures:
        raise InvalidInput(option, repr(text), "NAME=PICTURE[,PICTURE...]", "for example edges=left.png")
    return name, split_list(pictures)


def numbers_by_name(option: str, texts: Sequence[str] | None) -> dict[str, float]:
    """From NAME=NUMBER. Errors: `InvalidInput`."""
    found = {}
    for text in texts or ():
        name, equals, number = text.partition("=")
        values = as_numbers(number)
        if not equals or len(values) != 1:
            raise InvalidInput(option, repr(text), "NAME=NUMBER", "for example eta=0.5")
        found[name.strip()] = values[0]
    return found


def parse_variation(text: str) -> tuple[int, float]:
    """From SEED:STRENGTH, where the seed may be random. Errors: `InvalidInput`."""
    seed, _, strength = text.partition(":")
    values = as_numbers(strength)
    if len(values) != 1:
        raise InvalidInput("--variation", repr(text), "SEED:STRENGTH", "for example 7:0.2")
    return parse_seed(seed, "--variation"), values[0]


def parse_sigmas(text: str) -> tuple[float, ...]:
    """From a comma list. Errors: `InvalidInput`."""
    values = as_numbers(text)
    if not values:
        raise InvalidInput("--sigmas", repr(text), "noise levels with commas between them, such as 14,5,1,0")
    return tuple(values)
