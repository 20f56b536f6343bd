"""A1111's text about a picture: the prompt, the negative prompt, and a line of settings (modules/infotext_utils.py).

    red apple, <lora:style:0.8>
    Negative prompt: dark
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 64x96, Lora hashes: "style: 12ab"

Values in which separators occur are quoted as JSON. The tool's regular expression takes quadratic time for some texts;
this scanner goes through a text once.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

NEGATIVE = "Negative prompt:"

FEWEST = 3
"""Settings that make a last line the line of settings; with fewer it belongs to the prompt."""

MOST_LISTS = 8
"""Lists of JSON that are looked for in a line: each failure takes as long as the line is."""

_QUOTED = re.compile(r'"(?:\\.|[^\\"])*"')


@dataclass(frozen=True, kw_only=True)
class Infotext:
    """prompt, negative_prompt: the texts. settings: by A1111's names, in order, unquoted."""

    prompt: str
    negative_prompt: str
    settings: Mapping[str, str]


def parse_infotext(text: str) -> Infotext:
    """A1111's text in its parts. Without a line of settings all of it is prompt."""
    *lines, last = text.strip().split("\n")
    settings = parse_settings(last)
    if len(settings) < FEWEST:
        lines, settings = [*lines, last], {}
    prompt: list[str] = []
    negative: list[str] = []
    into = prompt
    for line in map(str.strip, lines):
        if line.startswith(NEGATIVE):
            into, line = negative, line.removeprefix(NEGATIVE).strip()
        into.append(line)
    return Infotext(prompt="\n".join(prompt), negative_prompt="\n".join(negative), settings=settings)


def format_infotext(infotext: Infotext) -> str:
    """The text of an `Infotext`."""
    lines = [infotext.prompt]
    if infotext.negative_prompt:
        lines.append(f"{NEGATIVE} {infotext.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in infotext.settings.items()))
    return "\n".join(lines)


def parse_settings(line: str) -> dict[str, str]:
    """From "Steps: 20, Sampler: Euler a, ..."; what has no form of a setting is left out."""
    found: dict[str, str] = {}
    place, lists = 0, MOST_LISTS
    while (colon := line.find(":", place)) >= 0:
        key = _key(line, place, colon)
        if key is None:
            place = colon + 1
            continue
        if line[colon + 1 : colon + 3].lstrip()[:1] in ("[", "{") and lists > 0:
            lists -= 1
            found[key], place = _list(line, colon + 1)
        else:
            found[key], place = _value(line, colon + 1)
    return found


def _key(line: str, start: int, colon: int) -> str | None:
    """The name that ends at a colon: what of the text before it may be in one, from its first letter on."""
    first = colon
    while first > start and (line[first - 1].isalnum() or line[first - 1] in "_ -/"):
        first -= 1
    key = line[first:colon].lstrip(" -/")
    return key.strip() if len(key) > 1 else None


def _value(line: str, start: int) -> tuple[str, int]:
    """The value that begins behind a colon, and where the next setting does."""
    while start < len(line) and line[start] == " ":
        start += 1
    quoted = _QUOTED.match(line, start)
    if quoted is not None and line[quoted.end() : quoted.end() + 1] in ("", ","):
        return _unquoted(quoted[0]), quoted.end() + 1
    end = line.find(",", start)
    end = len(line) if end < 0 else end
    return line[start:end].strip(), end + 1


def _list(line: str, start: int) -> tuple[str, int]:
    """The same for a list or an object of JSON, which Civitai writes as it is."""
    start += line[start] == " "
    try:
        _, end = json.JSONDecoder().raw_decode(line, start)
    except (ValueError, RecursionError):
        return _value(line, start)
    return line[start:end], end + 1


def _unquoted(text: str) -> str:
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, str) else text


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ',\n:"') else value
