"""OpenAI's image API in words of ours and back (https://platform.openai.com/docs/api-reference/images)."""

import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from PIL import Image, ImageChops

from undertow.doors import shown
from undertow.errors import InvalidInput
from undertow.pictures.modes import alpha_of
from undertow.records import Finite, Record, read_by
from undertow.serving.api.compatible.fixed import Fixed, without_fixed
from undertow.serving.jobs import Format, StoredPicture
from undertow.serving.uploads import decoded

PARTIAL_IMAGES = 3

FIXED: Mapping[str, Fixed] = {
    "background": Fixed(values=("auto", "opaque"), remedy="pictures have no transparency"),
    "quality": Fixed(values=("auto", "standard"), remedy="say with steps how much work a picture is worth"),
    "style": Fixed(remedy="describe the style in the prompt"),
    "moderation": Fixed(values=("auto", "low"), remedy="prompts are not judged"),
    "complexity": Fixed(remedy="say with steps how much work a picture is worth"),
    "input_fidelity": Fixed(remedy="say with strength how much of the picture may change"),
    "markup": Fixed(remedy="say with mask where the picture may change"),
    "frame_count": Fixed(remedy="pictures do not move"),
    "frame_duration_ms": Fixed(remedy="pictures do not move"),
    "svg": Fixed(remedy="pictures are made of pixels"),
}
"""OpenAI's fields that mean nothing here."""

NAMES = {"count": "n", "format": "output_format", "adapters": "loras", "label": "user"}
"""OpenAI's clients' names of our fields, where they have others."""

USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}
"""Nothing is billed here; clients expect the field in events."""

_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")


@dataclass(frozen=True, kw_only=True)
class Lora(Record):
    """An adapter by its name of GET /v1/adapters."""

    argument_prefix = "loras."
    called = "a LoRA"

    name: str
    scale: Finite = 1.0
    text_scale: Finite | None = None

    def wanted(self) -> dict[str, Any]:
        """The adapter, as `Admission.admit` takes it."""
        more = {} if self.text_scale is None else {"text_scale": self.text_scale}
        return {"source": self.name, "scale": self.scale, **more}


def as_loras(given: Any) -> Any:
    """Names for records, and JSON text, which forms have, for a list."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return given
    return [{"name": one} if isinstance(one, str) else one for one in given] if isinstance(given, list) else given


@dataclass(frozen=True, kw_only=True)
class ImageGeneration(Record):
    """The body of POST /v1/images/generations: OpenAI's fields, and those from `seed` on, which are undertow's."""

    prompt: str
    model: str | None = None
    n: Annotated[int, Ge(1)] = 1
    size: str = "auto"
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: Annotated[int, Ge(0), Le(100)] | None = None
    stream: bool = False
    partial_images: Annotated[int, Ge(0), Le(PARTIAL_IMAGES)] = 0
    user: str = ""
    """The client's own user; it becomes the label of the job, and nothing else."""
    safety_identifier: str = ""
    """As `user`, which it precedes."""
    seed: int | None = None
    negative_prompt: str = ""
    steps: int | None = None
    guidance_scale: Finite | None = None
    loras: Annotated[tuple[Lora, ...], read_by(as_loras)] = ()

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> "ImageGeneration":
        """Errors: `InvalidInput`, also for what OpenAI's servers do and this one does not."""
        known = {name: value for name, value in without_fixed(given, FIXED).items() if value is not None}
        found = cls.from_json(known)
        compression = found.output_compression
        if compression is not None and (compression != 100 or found.output_format != "png"):
            raise InvalidInput(
                "output_compression", compression, "nothing, or 100 for png", "files have a fixed quality"
            )
        if found.partial_images and not found.stream:
            raise InvalidInput("partial_images", found.partial_images, "0 without stream", "set stream to true")
        return found

    def wanted(self) -> dict[str, Any]:
        """The job, as `Admission.admit` takes it."""
        return {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "count": self.n,
            "format": self.output_format,
            "label": self.safety_identifier or self.user,
            **({} if self.model is None else {"model": self.model}),
            **({} if (size := size_of(self.size)) is None else {"size": size}),
            **({} if self.seed is None else {"seed": self.seed}),
            **({} if self.steps is None else {"steps": self.steps}),
            **({} if self.guidance_scale is None else {"guidance_scale": self.guidance_scale}),
            **({"adapters": [one.wanted() for one in self.loras]} if self.loras else {}),
        }


@dataclass(frozen=True, kw_only=True)
class ImageEdit(ImageGeneration):
    """The form of POST /v1/images/edits, without its files. strength, undertow's: how much of the picture may change;
    all of it where a mask says what may, else the library's default."""

    strength: Annotated[float, Ge(0), Le(1)] | None = None

    def wanted_of(self, picture: bytes, mask: bytes | None, max_pixels: int) -> dict[str, Any]:
        """The job. mask: transparent where the picture is drawn anew; without one, the picture's own transparency is
        it, if it has any, as with DALL-E 2. Errors: `InvalidInput`."""
        wanted = {**self.wanted(), "image": _text(picture)}
        hole = own_hole(picture, max_pixels) if mask is None else hole_of(mask, max_pixels)
        if hole is not None:
            wanted |= {"mask": _text(_png(hole)), "strength": 1.0}
        return wanted if self.strength is None else {**wanted, "strength": self.strength}


def size_of(text: str) -> list[int] | None:
    """Height and width; `None` for the model's own, or the picture's. Errors: `InvalidInput`."""
    if text == "auto":
        return None
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidInput("size", shown(text[:40]), "WIDTHxHEIGHT such as 512x768, or auto")
    return [int(match[2]), int(match[1])]


def hole_of(mask: bytes, max_pixels: int) -> Image.Image:
    """A mask of OpenAI's as one of ours: what is transparent is white, and drawn anew. Errors: `InvalidInput`."""
    alpha = alpha_of(decoded("mask", mask, max_pixels)[0])
    if alpha is None or alpha.getextrema()[0] == 255:
        expected = "a PNG file that is transparent where the picture is to be drawn anew"
        raise InvalidInput("mask", "a picture without transparency", expected, "give it an alpha channel")
    return ImageChops.invert(alpha)


def own_hole(picture: bytes, max_pixels: int) -> Image.Image | None:
    """The mask that a picture's own transparency is; `None` for an opaque one. Errors: `InvalidInput`."""
    alpha = alpha_of(decoded("image", picture, max_pixels)[0])
    return None if alpha is None or alpha.getextrema()[0] == 255 else ImageChops.invert(alpha)


def images_json(
    pictures: Sequence[tuple[StoredPicture, bytes]],
    *,
    created: float,
    output_format: Format,
    urls: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The answer to a request without stream. urls: where the pictures are, for clients that asked for that."""
    bodies = [{"b64_json": _text(content)} for _, content in pictures]
    data = bodies if urls is None else [{"url": url} for url in urls]
    first = pictures[0][0]
    return {
        "created": int(created),
        "data": data,
        "background": "opaque",
        "output_format": output_format,
        "size": f"{first.width}x{first.height}",
        "usage": USAGE,
    }


def event_json(
    kind: str, content: bytes, *, at: float, size: tuple[int, int], output_format: Format, index: int | None = None
) -> dict[str, Any]:
    """An event of a stream. kind: such as image_generation.completed. size: width and height. index: of a partial
    picture; the final one has none."""
    return {
        "type": kind,
        "b64_json": _text(content),
        "created_at": int(at),
        "size": "{}x{}".format(*size),
        "quality": "auto",
        "background": "opaque",
        "output_format": output_format,
        **({"usage": USAGE} if index is None else {"partial_image_index": index}),
    }


def in_format(preview: bytes, output_format: Format) -> bytes:
    """A preview, which is a PNG file, in the format that the client reads."""
    if output_format == "png":
        return preview
    buffer = BytesIO()
    with Image.open(BytesIO(preview)) as picture:
        picture.convert("RGB").save(buffer, format=output_format.upper())
    return buffer.getvalue()


def partial_due(sent: int, wanted: int, step: int, steps: int) -> bool:
    """Whether the next of the wanted partial pictures is due: they are spread evenly over the steps."""
    return sent < wanted and steps > 0 and step / steps >= (sent + 1) / (wanted + 1)


def _text(content: bytes) -> str:
    return b64encode(content).decode()


def _png(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
