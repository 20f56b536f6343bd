"""The pictures of img2img as A1111 prepares them (modules/images.py, masking.py and processing.py of version 1.10):
resized, the mask blurred, what it hides painted over, and, for "only masked", cut out and put back."""

from dataclasses import dataclass
from io import BytesIO
from typing import Any

from PIL import Image, ImageFilter, ImageOps
from PIL.PngImagePlugin import PngInfo

from undertow.errors import InvalidInput
from undertow.pictures.modes import to_mask_picture, to_rgb
from undertow.serving.api.compatible.a1111.resize import FILL_UP, opener, resized, text_of
from undertow.serving.api.compatible.a1111.words import ImageToImage

Box = tuple[int, int, int, int]
"""Left, top, right and bottom."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OnlyMasked:
    """A part of a picture that is drawn at another size, and put back. mask: of the whole picture."""

    picture: Image.Image
    mask: Image.Image
    box: Box

    def put_back(self, content: bytes) -> bytes:
        """The whole picture with the part that was drawn, as a PNG file with the texts of that part's file."""
        with Image.open(BytesIO(content)) as drawn:
            drawn.load()
            info = PngInfo()
            for name, text in drawn.info.items():
                if isinstance(name, str) and isinstance(text, str):
                    info.add_itxt(name, text)
            left, top, right, bottom = self.box
            part = drawn.convert("RGB").resize((right - left, bottom - top), Image.Resampling.LANCZOS)
            layer = self.picture.copy()
            layer.paste(part, (left, top))
        buffer = BytesIO()
        Image.composite(layer, self.picture, self.mask).save(buffer, format="PNG", pnginfo=info)
        return buffer.getvalue()


def pictures_of(read: ImageToImage, max_pixels: int, trained_size: int) -> tuple[dict[str, Any], OnlyMasked | None]:
    """Fields of the job: the picture, its size, and the mask; and how results become the whole picture, where only the
    masked part is drawn. Errors: `InvalidInput`."""
    uploads = opener(max_pixels)
    picture = to_rgb(uploads.open("init_images[0]", read.init_images[0]), "init_images[0]")
    size = picture.size if read.size is None else (read.size[1], read.size[0])
    if size[0] * size[1] > max_pixels:
        raise InvalidInput("width, height", f"{size[0]}x{size[1]}", f"at most {max_pixels:,} pixels")
    if read.mask is None:
        given = read.init_images[0] if size == picture.size else text_of(resized(picture, size, read.resize_mode))
        return {"image": given, "size": [size[1], size[0]]}, None
    mask = to_mask_picture(uploads.open("mask", read.mask)).convert("L")
    if read.inpainting_mask_invert:
        mask = ImageOps.invert(mask)
    mask = mask.filter(ImageFilter.GaussianBlur(read.blur))
    whole = None
    if read.inpaint_full_res and mask.getbbox() is not None:
        if mask.size != picture.size:
            value, expected = "{}x{}".format(*mask.size), "{}x{}, the picture's size".format(*picture.size)
            raise InvalidInput("mask", value, expected, "or set inpaint_full_res to false")
        size = (trained_size, trained_size) if read.size is None else size
        box = grown(masked_box(mask, read.inpaint_full_res_padding), size, picture.size)
        whole = OnlyMasked(picture=picture, mask=mask, box=box)
        picture, mask = (resized(one.crop(box), size, FILL_UP) for one in (picture, mask))
    else:
        picture, mask = (resized(one, size, read.resize_mode) for one in (picture, mask))
    if read.inpainting_fill == 0:
        picture = painted_over(picture, mask)
    return {"image": text_of(picture), "mask": text_of(mask), "size": [size[1], size[0]]}, whole


def masked_box(mask: Image.Image, padding: int) -> Box:
    """What a mask does not leave black, and `padding` pixels around it."""
    left, top, right, bottom = mask.getbbox() or (0, 0, *mask.size)
    return (
        max(left - padding, 0),
        max(top - padding, 0),
        min(right + padding, mask.width),
        min(bottom + padding, mask.height),
    )


def grown(box: Box, size: tuple[int, int], within: tuple[int, int]) -> Box:
    """The box, made wider or higher to the proportions of `size`, as far as there is picture."""
    left, top, right, bottom = box
    if (right - left) * size[1] > size[0] * (bottom - top):
        top, bottom = _grown(top, bottom, round((right - left) * size[1] / size[0]), within[1])
    else:
        left, right = _grown(left, right, round((bottom - top) * size[0] / size[1]), within[0])
    return left, top, right, bottom


def painted_over(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """The picture with the colors of what surrounds it where the mask is white: averaged over larger and larger squares
    until no hole is left, then put under the finer ones (Gortler et al., The Lumigraph, SIGGRAPH 1996, pull-push)."""
    levels = [picture.convert("RGBA")]
    levels[0].putalpha(ImageOps.invert(mask))
    while max(levels[-1].size) > 1:
        width, height = levels[-1].size
        levels.append(levels[-1].resize(((width + 1) // 2, (height + 1) // 2), Image.Resampling.BOX))
    painted = levels.pop().convert("RGB").convert("RGBA")
    for finer in reversed(levels):
        painted = Image.alpha_composite(painted.resize(finer.size, Image.Resampling.BILINEAR), finer)
    return painted.convert("RGB")


def _grown(low: int, high: int, length: int, within: int) -> tuple[int, int]:
    """An interval of `length` around another, moved inside of `within`, which may be shorter."""
    length = max(high - low, min(length, within))
    low = min(max(0, low - (length - (high - low)) // 2), within - length)
    return low, low + length
