"""How a picture's latents are shown to the network."""

from undertow.engine.layout import Layout
from undertow.engine.picture_size import Size, window_cells
from undertow.engine.request import GenerationRequest


def layout_for(request: GenerationRequest, cells: Size, trained: int, factor: int) -> Layout:
    """One window, or the request's overlapping views. Errors: `InvalidInput`."""
    if request.views is None:
        return Layout.whole(cells, request.seamless)
    window = window_cells(request.views, trained, factor)
    return Layout(
        size=cells,
        window=(min(window, cells[0]), min(window, cells[1])),
        overlap=request.views.overlap,
        seamless=request.seamless,
    )
