"""How a picture's latents are shown to the network."""

from undertow.engine.layout import Layout
from undertow.engine.parts import Views
from undertow.engine.picture_size import Size
from undertow.engine.request import GenerationRequest
from undertow.errors import InvalidInput


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
