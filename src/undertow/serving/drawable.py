"""Whether a model draws a request, by its configs and headers alone: what the engine would refuse once the model is
loaded is refused at the door. Imports no torch; rules that both apply stand where both reach them."""

from collections.abc import Iterator

from undertow.engine.image_inputs import ImageInputs
from undertow.engine.picture_size import window_cells
from undertow.engine.request import MODEL_SAMPLER, GenerationRequest
from undertow.engine.together import require_together
from undertow.errors import InvalidInput
from undertow.known_names import require_drawing, require_sampler_options
from undertow.serving.catalog.entries import ModelEntry
from undertow.step_counts import require_distilled, whole_grid


def require_drawable(request: GenerationRequest, model: ModelEntry) -> None:
    """Errors: `InvalidInput` for what does not fit the model, or each other."""
    unet, vae = model.subject.unet, model.subject.vae
    assert unet is not None
    assert vae is not None
    require_together(request)
    inputs = ImageInputs.of(unet, vae.latent_channels)
    inputs.check(request)
    if request.views is not None:
        window_cells(request.views, unet.sample_size, model.subject.factor)
    if request.sampler != MODEL_SAMPLER:
        require_drawing(request.sampler, model.levels_along)
        require_sampler_options(request.sampler, request.sampler_options)
    _require_clip_skip(request, model)
    _require_steps(request, model, edits=inputs.edits)


def _require_clip_skip(request: GenerationRequest, model: ModelEntry) -> None:
    for kind, layers in model.text_layers.items():
        if request.clip_skip is not None and request.clip_skip > layers:
            raise InvalidInput("clip_skip", request.clip_skip, f"at most {layers}, the layers of {kind}")


def _require_steps(request: GenerationRequest, model: ModelEntry, *, edits: bool) -> None:
    own = request.sampler == MODEL_SAMPLER and request.schedule is None and request.sigmas is None
    for argument, steps, strength in _passes(request, edits=edits):
        whole = whole_grid(steps, strength, request.strength_convention)
        if own and model.distilled_at is not None:
            longer = "" if whole == steps else f" of the whole grid, whose end a strength of {strength:g} leaves"
            require_distilled(whole, model.distilled_at, argument + longer)


def _passes(request: GenerationRequest, *, edits: bool) -> Iterator[tuple[str, int, float]]:
    """Of each pass the field that says its steps, these, and what share of them is drawn. edits: the model reads the
    image, and does not start from it."""
    yield "steps", request.step_count, 1.0 if request.image is None or edits else request.strength
    more = request.high_resolution
    if more is not None:
        own = more.steps is not None and request.sigmas is None
        steps = more.steps if own and more.steps is not None else request.step_count
        yield "high_resolution.steps" if own else "steps", steps, more.strength
