"""How large a picture gets, and how its latents are shown to the network."""

from undertow.engine.layout import Layout
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


def layout_for(request: GenerationRequest, cells: Size, trained: int, factor: int) -> Layout:
    """One window, or the request's overlapping views. Errors: `InvalidInput`."""
    if request.views is None:
        return Layout.whole(cells, request.seamless)
    window = _window(request.views, trained, factor)
    return Layout(
        size=cells,
        window=(min(window, cells[0]), min(window, cells[1])),
        overlap=request.views.overlap,
        seamless=request.seamless,
    )


def _window(views: Views, trained: int, factor: int) -> int:
    """Side of a window in cells."""
    if views.window is None:
        return trained
    if views.window < factor or views.window % factor:
        raise InvalidInput("views.window", views.window, f"a multiple of {factor} pixels")
    return views.window // factor
