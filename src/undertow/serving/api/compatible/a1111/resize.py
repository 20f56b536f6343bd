"""Pictures of A1111's clients: out of base64, at another size (modules/images.py, `resize_image`), and back."""

from base64 import b64encode
from io import BytesIO

from PIL import Image, ImageOps

from undertow.doors import shown
from undertow.errors import InvalidInput
from undertow.serving.uploads import Uploads

STRETCH, CROP, FILL_UP = 0, 1, 2


def opener(max_pixels: int) -> Uploads:
    """Opens what clients send in base64, and nothing else."""
    return Uploads(read=_no_artifacts, max_pixels=max_pixels)


def resized(picture: Image.Image, size: tuple[int, int], mode: int) -> Image.Image:
    """The picture at this size. mode: whether it is stretched, cropped, or filled up with its edges."""
    if picture.size == size:
        return picture
    if mode == STRETCH:
        return picture.resize(size, Image.Resampling.LANCZOS)
    if mode == CROP:
        return ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
    inner = ImageOps.contain(picture, size, Image.Resampling.LANCZOS)
    left, top = (size[0] - inner.width) // 2, (size[1] - inner.height) // 2
    filled = Image.new(inner.mode, size)
    for edge, place in (
        ((0, 0, inner.width, 1), (left, 0, left + inner.width, top)),
        ((0, inner.height - 1, inner.width, inner.height), (left, top + inner.height, left + inner.width, size[1])),
        ((0, 0, 1, inner.height), (0, top, left, top + inner.height)),
        ((inner.width - 1, 0, inner.width, inner.height), (left + inner.width, top, size[0], top + inner.height)),
    ):
        width, height = place[2] - place[0], place[3] - place[1]
        if width > 0 and height > 0:
            filled.paste(inner.crop(edge).resize((width, height)), place)
    filled.paste(inner, (left, top))
    return filled


def text_of(picture: Image.Image) -> str:
    buffer = BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return b64encode(buffer.getvalue()).decode()


def _no_artifacts(sha256: str) -> bytes:
    raise InvalidInput("init_images[0]", shown(sha256), "a picture in base64")
