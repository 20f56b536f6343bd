"""How a picture was made, inside its file: A1111's text that other tools read, and JSON that repeats it exactly."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from PIL import Image, UnidentifiedImageError

from undertow.engine.exif import from_exif
from undertow.engine.report import Report
from undertow.engine.request import PICTURES, GenerationRequest
from undertow.errors import InvalidInput
from undertow.picture_files import file_of
from undertow.records import Record

TEXT_KEY = "parameters"
"""Where A1111, Forge, ComfyUI loaders and civitai look."""

JSON_KEY = "undertow"

LONGEST = 8_000_000
"""Bytes of text in a PNG file that libpng, and so browsers and viewers, accept (PNG_USER_CHUNK_MALLOC_MAX)."""


def a1111_text(report: Report, index: int) -> str:
    """A1111's "infotext" of picture `index`: prompt, negative prompt, then settings (modules/infotext_utils.py)."""
    request = report.request
    height, width = report.size
    settings = {
        "Steps": request.steps,
        "Sampler": report.sampler or request.sampler,
        "Schedule type": report.schedule or request.schedule,
        "CFG scale": f"{request.guidance_scale:g}",
        "Seed": request.seeds[index],
        "Size": f"{width}x{height}",
        "Model": report.model,
        **({} if request.clip_skip is None else {"Clip skip": request.clip_skip}),
        "Version": "undertow",
    }
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in settings.items()))
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Description(Record):
    """How a picture came to be.

    The whole request is kept, not the one picture's: its bits may depend on how many rows were computed together.
    """

    request: GenerationRequest
    """What was asked for."""
    index: Annotated[int, Ge(0)]
    """Which of the request's pictures this is."""
    model: str
    """The model's name, or where it was loaded from."""


def read_png(path: str | Path, instead: Mapping[str, Any] | None = None) -> Description:
    """How the picture in a file was made. instead: fields of the request that replace the stored ones.

    Errors: `InvalidInput` for a file that is no picture or that undertow did not write, and for a request whose
    pictures are neither stored nor given.
    """
    try:
        with Image.open(path) as image:
            content = image.info.get(JSON_KEY) or from_exif(image).get(JSON_KEY)
    except (OSError, UnidentifiedImageError) as err:
        raise InvalidInput("picture", str(path), "a picture that undertow wrote", str(err)) from err
    if not isinstance(content, str):
        raise InvalidInput("picture", str(path), "a picture that undertow wrote", "its description is missing")
    try:
        stored: dict[str, Any] = json.loads(content)
        stored["request"] |= instead or {}
    except (json.JSONDecodeError, KeyError, TypeError) as err:
        raise InvalidInput("picture", str(path), "an unchanged description", f"it is damaged ({err})") from err
    return Description.from_json(stored)


def description_json(report: Report, index: int, path: Path, *, embed: bool = True) -> str:
    """A `Description` as JSON, with pictures as bytes (embed) unless that makes it larger than other programs read.
    path: of the file that it is written to, which may be one of these pictures until then."""
    pictures = {name: getattr(report.request, name) for name in PICTURES}
    lost = {name: one.copy() for name, one in pictures.items() if one is not None and _is_in(path, one)}
    request = replace(report.request, size=report.size, **lost)
    description = Description(request=request, index=index, model=report.model)
    text = json.dumps(description.to_json(embed=embed))
    return text if len(text) <= LONGEST else json.dumps(description.to_json(embed=False))


def _is_in(path: Path, image: Image.Image) -> bool:
    file = file_of(image)
    return file is not None and file.resolve() == path.resolve()


def _quoted(value: object) -> str:
    """A1111 quotes values in which its own separators occur."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',\n:"') else text
