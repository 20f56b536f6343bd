"""Pictures to files, each with what is needed to repeat it: in PNG's text chunks, in EXIF of JPEG and WebP."""

import logging
import re
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from undertow.checkpoints.files.atomic import atomic_write
from undertow.engine.a1111_text import a1111_text
from undertow.engine.description_json import description_json
from undertow.engine.exif import LONGEST_IN_JPEG, to_exif
from undertow.engine.metadata import JSON_KEY, TEXT_KEY
from undertow.engine.report import Report
from undertow.pictures.names import FORMATS

logger = logging.getLogger(__name__)

QUALITY = 95
"""Of JPEG and WebP, whose files are pictures to look at; PNG keeps every bit."""


def save_picture(image: Image.Image, path: str | Path, report: Report, index: int = 0) -> Path:
    """Writes picture `index` of a result, in the format of the path's ending (`pictures.names.FORMATS`), with both
    descriptions; a full disk leaves no half of a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as draft, draft.open("wb") as file:
        file.write(encoded(image, path, report, index))
    return path


def encoded(image: Image.Image, path: Path, report: Report, index: int = 0) -> bytes:
    """What `save_picture` writes. path: of the file, which may hold a picture of the request until then."""
    buffer = BytesIO()
    form = FORMATS[path.suffix.lower()]
    texts = {TEXT_KEY: a1111_text(report, index), JSON_KEY: description_json(report, index)}
    if form == "PNG":
        _write_png(image, buffer, texts)
    elif form == "WEBP":
        image.save(buffer, format=form, quality=QUALITY, exif=to_exif(texts))
    else:
        shorter = {JSON_KEY: description_json(report, index, embed=False)}
        image.convert("RGB").save(buffer, format=form, quality=QUALITY, exif=_exif_for_jpeg(texts, shorter, path))
    return buffer.getvalue()


def name_fields(report: Report, index: int) -> dict[str, Any]:
    """What the name of picture `index` may be made of: see `pictures.names.FIELDS`."""
    request, (height, width) = report.request, report.size
    return {
        "seed": request.seeds[index],
        "prompt": request.prompt,
        "negative": request.negative_prompt,
        "model": re.sub(r"\.(safetensors|ckpt|sft)$", "", Path(report.model).name),
        "sampler": report.sampler,
        "schedule": report.schedule,
        "steps": request.step_count,
        "guidance": request.guidance_scale,
        "width": width,
        "height": height,
        "index": index + 1,
    }


def _write_png(image: Image.Image, file: BytesIO, texts: Mapping[str, str]) -> None:
    info = PngInfo()
    for name, text in texts.items():
        info.add_itxt(name, text)
    image.save(file, format="PNG", pnginfo=info)


def _exif_for_jpeg(texts: Mapping[str, str], shorter: Mapping[str, str], path: Path) -> bytes:
    """As much of the descriptions as a JPEG file has room for: without the request's pictures, or A1111's alone."""
    for tried in (texts, {**texts, **shorter}, {TEXT_KEY: texts[TEXT_KEY]}):
        if len(block := to_exif(tried)) <= LONGEST_IN_JPEG:
            if JSON_KEY not in tried:
                logger.warning("%s has no room for what repeats it: a PNG or WebP file has", path)
            return block
    logger.warning("%s has no room for its prompt: a PNG or WebP file has", path)
    return b""
