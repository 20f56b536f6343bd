"""How large a picture gets. Imports no torch, so that it is known before a model is loaded."""

from undertow.engine.parts import Views
from undertow.engine.request import GenerationRequest
from undertow.errors import InvalidInput

Size = tuple[int, int]
"""Height and width."""


def picture_size(request: GenerationRequest, trained: int, factor: int) -> tuple[Size, str | None]:
    """Size in pixels: as asked for, else the image's, else the model's own; and a note when the image's has to change.

    trained: side in cells that the network was trained at. factor: pixels per cell. Errors: `InvalidInput`.
    """
    if request.size is None and request.image is not None:
        width, height = request.image.size
        size = (max(factor, height // factor * factor), max(factor, width // factor * factor))
        same = size == (height, width)
        return size, None if same else f"the image is {width}x{height}; drawn at {size[1]}x{size[0]}"
    if request.size is None:
        return (trained * factor, trained * factor), None
    height, width = request.size
    if min(height, width) < factor or height % factor or width % factor:
        nearest = [max(factor, round(length / factor) * factor) for length in request.size]
        raise InvalidInput(
            "size", f"{width}x{height}", f"multiples of {factor} pixels", f"the nearest is {nearest[1]}x{nearest[0]}"
        )
    return request.size, None


def window_cells(views: Views, trained: int, factor: int) -> int:
    """Side of a window in cells. trained, factor: as in `picture_size`. Errors: `InvalidInput`."""
    if views.window is None:
        return trained
    if views.window < factor or views.window % factor:
        raise InvalidInput("views.window", views.window, f"a multiple of {factor} pixels")
    return views.window // factor


def largest_size(request: GenerationRequest, sample_size: int, factor: int) -> Size:
    """Height and width of the largest picture on the way, in pixels. sample_size: of the U-Net, in cells. factor:
    pixels per cell. Errors: `InvalidInput`."""
    size, _ = picture_size(request, sample_size, factor)
    if request.high_resolution is None:
        return size
    scale = request.high_resolution.scale
    return round(size[0] * scale / factor) * factor, round(size[1] * scale / factor) * factor
