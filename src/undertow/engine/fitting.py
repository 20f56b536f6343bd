"""Whether a model draws a request, by the model's configs alone: one list of rules, for the engine and for the door of
the service. Imports no torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from undertow.checkpoints.keymap.prefixes import TextKind
from undertow.engine.guidance_method import named_methods, require_guidance
from undertow.engine.image_inputs import ImageInputs
from undertow.engine.named_sampler import KnownLevels, NamedSampler, named_sampler, require_sampled
from undertow.engine.picture_size import Size, largest_size, picture_size, window_cells
from undertow.engine.request import GenerationRequest
from undertow.engine.together import require_together
from undertow.errors import InvalidInput
from undertow.schedulers.model_sampler import ModelSampler
from undertow.step_counts import kept_steps, whole_grid
from undertow.unet.config import UNetConfig


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What decides whether a model draws a request. latent_channels: of the autoencoder. factor: pixels per cell.
    sampler: that its folder names, or why it is not known. levels: of noise, as this request means them. text_layers:
    of each text encoder."""

    unet: UNetConfig
    latent_channels: int
    factor: int
    sampler: ModelSampler | str | None = None
    levels: KnownLevels = KnownLevels()
    text_layers: Mapping[TextKind, int] = field(default_factory=dict[TextKind, int])


def require_fitting(request: GenerationRequest, model: ModelFacts) -> None:
    """Errors: `InvalidInput` for what does not fit the model, or each other."""
    require_together(request)
    inputs = ImageInputs.of(model.unet, model.latent_channels)
    inputs.check(request)
    picture_size(request, model.unet.sample_size, model.factor)
    if request.views is not None:
        window_cells(request.views, model.unet.sample_size, model.factor)
    _require_clip_skip(request.clip_skip, model.text_layers)
    sampler = named_sampler(request, model.sampler)
    require_sampled(request, sampler, model.levels)
    methods = named_methods(request, model.unet)
    for one in _passes(request, model, edits=inputs.edits):
        if request.sigmas is None:
            one.require_steps(sampler, model.levels)
        steps = one.drawn(sampler, model.levels)
        if steps is not None:
            require_guidance(methods, steps=steps, cells=one.cells, path=model.levels.path)


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """argument: that says its steps. steps: of the grid that was asked for. strength: how much of it is drawn, as the
    convention counts. given: the levels themselves are, whose number steps is. cells: of its latents."""

    argument: str
    steps: int
    strength: float
    convention: str
    given: bool
    cells: Size

    def require_steps(self, sampler: NamedSampler, levels: KnownLevels) -> None:
        """Errors: `InvalidInput` for more than there are levels."""
        whole = whole_grid(self.steps, self.strength, self.convention)
        longer = "" if whole == self.steps else f" of the whole grid, whose end a strength of {self.strength:g} leaves"
        sampler.require_steps(whole, levels, self.argument + longer)

    def drawn(self, sampler: NamedSampler, levels: KnownLevels) -> int | None:
        """Its steps; `None` where the grid has more or fewer than were asked for, and nobody knows how many."""
        steps = self.steps if self.given else sampler.count(self.steps, levels)
        if steps is None:
            return None
        return min(steps, kept_steps(steps, self.strength, self.convention))


def _passes(request: GenerationRequest, model: ModelFacts, *, edits: bool) -> Iterator[_Pass]:
    """edits: the model reads the image, and does not start from it."""
    trained, factor, given = model.unet.sample_size, model.factor, request.sigmas is not None

    def cells(size: Size) -> Size:
        return size[0] // factor, size[1] // factor

    yield _Pass(
        argument="steps",
        steps=request.step_count,
        strength=1.0 if request.image is None or edits else request.strength,
        convention=request.strength_convention,
        given=given,
        cells=cells(picture_size(request, trained, factor)[0]),
    )
    more = request.high_resolution
    if more is not None:
        own = more.steps is not None and not given
        yield _Pass(
            argument="high_resolution.steps" if own else "steps",
            steps=more.steps if own and more.steps is not None else request.step_count,
            strength=more.strength,
            convention=request.strength_convention,
            given=given,
            cells=cells(largest_size(request, trained, factor)),
        )


def _require_clip_skip(clip_skip: int | None, text_layers: Mapping[TextKind, int]) -> None:
    for kind, layers in text_layers.items():
        if clip_skip is not None and clip_skip > layers:
            raise InvalidInput("clip_skip", clip_skip, f"at most {layers}, the layers of {kind}")
