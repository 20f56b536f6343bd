"""A request drawn once, with maps of what its words were attended to."""

from collections.abc import Sequence

from undertow.checkpoints.read.model import LoadedModel
from undertow.encoders.reading import Reading
from undertow.engine.engine import Engine
from undertow.engine.events import Observer, unobserved
from undertow.engine.options import RunOptions
from undertow.engine.picture_size import picture_size
from undertow.engine.probing import ForwardProbe
from undertow.engine.request import GenerationRequest
from undertow.engine.result import GenerationResult
from undertow.errors import InvalidInput
from undertow.inspection.attention_choice import AttentionChoice, GuidanceSide
from undertow.inspection.attention_maps import AttentionMapProbe
from undertow.inspection.marks import drawn_with, marked, next_mark
from undertow.inspection.self_attention import SelfAttentionProbe
from undertow.inspection.word_maps import AttentionHeatmaps, PictureMaps, WordOptions, require_words, word_maps


class AttentionWatch:
    """What sees where the words of one request are attended to, while an engine draws it among others.

    mark: of the request's rows, in its `RunOptions`. probes: for the engine, until the request is done. Errors:
    `InvalidInput`, before anything is drawn, for words that the prompt lacks, and for layers, heads and cells that the
    network lacks; `MissingComponent` for a model without text.
    """

    def __init__(
        self,
        engine: Engine,
        request: GenerationRequest,
        choice: AttentionChoice,
        options: WordOptions,
        *,
        side: GuidanceSide = "conditional",
        self_attention: bool = False,
        mark: int,
    ):
        model = engine.model
        self._request, self._choice, self._options = request, choice, options
        self._side: GuidanceSide = side
        self._text = model.require_text(request.clip_skip)
        if side == "unconditional" and (request.guidance_method, request.guidance_scale) == ("cfg", 1):
            expected = "'conditional' at guidance_scale 1: without guidance the negative prompt is not evaluated"
            raise InvalidInput("side", repr(side), expected, "or another guidance_scale")
        _require_layers(model, request, choice, self_attention=self_attention)
        argument = "prompt" if side == "conditional" else "negative_prompt"
        require_words(options, self._readings(), self._text, argument)
        watched = {
            "unet": model.require_unet(),
            "refiner": None if engine.refiner is None else engine.refiner.require_unet(),
            "side": side,
            "rows": marked(mark),
        }
        self._maps = AttentionMapProbe(choice=choice, **watched)
        reductions = AttentionChoice(heads=choice.heads, steps=choice.steps)
        self._own = SelfAttentionProbe(choice=reductions, **watched) if self_attention else None

    @property
    def probes(self) -> Sequence[ForwardProbe]:
        return [self._maps] if self._own is None else [self._maps, self._own]

    def heatmaps(self, result: GenerationResult, number: int) -> AttentionHeatmaps:
        """The maps of what was drawn. number: of the request in its engine. Errors: `InvalidInput` for steps and
        branches that it lacked."""
        pictures: list[PictureMaps] = []
        for index, image in enumerate(result.images):
            tokens = self._maps.maps(number, index)
            if not tokens:
                raise _nothing_seen(self._choice, self._side)
            own = () if self._own is None else self._own.maps(number, index)
            maps = word_maps(tokens, self._options, self._text)
            pictures.append(PictureMaps(image=image, maps=maps, tokens=tokens, self_attention=own))
        return AttentionHeatmaps(result=result, pictures=tuple(pictures), choice=self._choice, options=self._options)

    def _readings(self) -> list[Reading]:
        request = self._request
        prompts = [(request.prompt, True), *((region.prompt, False) for region in request.regions)]
        if self._side == "unconditional":
            prompts = [(request.negative_prompt, False)]
        return [
            reading
            for prompt, composed in prompts
            for reading in self._text.read_steps(
                prompt, request.step_count, dialect=request.dialect, clip_skip=request.clip_skip, composition=composed
            )
        ]


def attention_heatmaps(
    engine: Engine,
    request: GenerationRequest,
    choice: AttentionChoice,
    options: WordOptions,
    *,
    side: GuidanceSide = "conditional",
    self_attention: bool = False,
    run: RunOptions | None = None,
    observe: Observer = unobserved,
) -> AttentionHeatmaps:
    """Draws the request, and returns its maps beside its pictures. Errors: those of drawing, of `AttentionWatch` and of
    its maps."""
    mark = next_mark()
    watch = AttentionWatch(engine, request, choice, options, side=side, self_attention=self_attention, mark=mark)
    return watch.heatmaps(*drawn_with(watch.probes, engine, request, mark, run, observe))


def _require_layers(
    model: LoadedModel, request: GenerationRequest, choice: AttentionChoice, *, self_attention: bool
) -> None:
    """Errors: `InvalidInput` for what the network lacks. A second pass has layers of other sizes."""
    unet, factor = model.require_unet(), model.require_vae().config.factor
    height, width = picture_size(request, unet.config.sample_size, factor)[0]
    choice.require_cross(unet, None if request.high_resolution else (height // factor, width // factor))
    if self_attention:
        AttentionChoice(heads=choice.heads).require_self(unet, None)


def _nothing_seen(choice: AttentionChoice, side: GuidanceSide) -> InvalidInput:
    if choice.steps is not None:
        return InvalidInput("at_steps", ", ".join(map(str, choice.steps)), "steps that the request has, from 0")
    return InvalidInput("side", repr(side), "'conditional' where guidance asks for nothing else")
