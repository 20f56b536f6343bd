"""Settings of a request that exclude each other. Imports no torch, so that they are refused at the door too."""

from undertow.engine.request import GenerationRequest
from undertow.errors import InvalidInput
from undertow.known_names import split_guidance


def require_together(request: GenerationRequest) -> None:
    """Errors: `InvalidInput` for settings that cannot act beside each other, whatever the model is."""
    windows = request.views is not None or request.seamless != "none"
    if request.regions_by == "attention" and windows:
        raise InvalidInput(
            "regions_by", "'attention'", "'estimates' with views and seamless pictures", "windows do not move regions"
        )
    if request.regions_by == "attention" and any(region.adapters for region in request.regions):
        raise InvalidInput(
            "regions_by", "'attention'", "'estimates' for regions with adapters", "attention asks once for all"
        )
    if request.views is not None and any(name == "sag" for name, _ in split_guidance(request.guidance_method)):
        raise InvalidInput("guidance_method", "sag", "another one with views", "its attention map is of one window")
