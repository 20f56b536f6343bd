"""A request drawn once, with maps of what its words were attended to."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import count

from undertow.engine.engine import Engine
from undertow.engine.events import Observer, unobserved
from undertow.engine.options import RunOptions
from undertow.engine.probing import ForwardProbe
from undertow.engine.request import GenerationRequest
from undertow.engine.result import GenerationResult
from undertow.errors import InvalidInput
from undertow.inspection.attention_choice import AttentionChoice, GuidanceSide
from undertow.inspection.attention_maps import AttentionMapProbe
from undertow.inspection.self_attention import SelfAttentionProbe
from undertow.inspection.word_maps import AttentionHeatmaps, PictureMaps, WordOptions, require_words, word_maps

_NUMBERS = count(1 << 32)
"""Of requests that are looked into: nobody else's, also where others number their own."""


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
    """Draws the request, and returns its maps beside its pictures. Errors: those of drawing; `InvalidInput`, before
    anything is drawn, for words that the prompt lacks, layers and heads that the network lacks, and steps and branches
    that the request lacks."""
    model = engine.model
    unet, text = model.require_unet(), model.require_text(request.clip_skip)
    cells = (unet.config.sample_size, unet.config.sample_size)
    AttentionChoice(layers=choice.layers, heads=choice.heads).cross_attentions(unet, cells)
    prompts = [(request.prompt, True), *((region.prompt, False) for region in request.regions)]
    if side == "unconditional":
        prompts = [(request.negative_prompt, False)]
    steps = request.steps
    readings = [
        reading
        for prompt, composed in prompts
        for reading in text.read_steps(
            prompt, steps, dialect=request.dialect, clip_skip=request.clip_skip, composition=composed
        )
    ]
    require_words(options.words or (), readings, text)
    numbers = (next_number(),)
    maps = AttentionMapProbe(unet=unet, choice=choice, side=side, requests=numbers)
    reductions = AttentionChoice(heads=choice.heads, steps=choice.steps)
    own = SelfAttentionProbe(unet=unet, choice=reductions, side=side, requests=numbers) if self_attention else None
    result = drawn_with([maps] if own is None else [maps, own], engine, request, numbers[0], run, observe)
    pictures: list[PictureMaps] = []
    for index, image in enumerate(result.images):
        tokens = maps.maps(numbers[0], index)
        if not tokens:
            raise _nothing_seen(choice, side)
        found = () if own is None else own.maps(numbers[0], index)
        pictures.append(
            PictureMaps(image=image, maps=word_maps(tokens, options, text), tokens=tokens, self_attention=found)
        )
    return AttentionHeatmaps(result=result, pictures=tuple(pictures), choice=choice, options=options)


def _nothing_seen(choice: AttentionChoice, side: GuidanceSide) -> InvalidInput:
    if choice.steps is not None:
        return InvalidInput("at_steps", ", ".join(map(str, choice.steps)), "steps that the request has, from 0")
    return InvalidInput("side", repr(side), "'conditional' where guidance asks for nothing else")


def next_number() -> int:
    """For a request that is looked into."""
    return next(_NUMBERS)


def drawn_with(
    probes: Sequence[ForwardProbe],
    engine: Engine,
    request: GenerationRequest,
    number: int,
    run: RunOptions | None = None,
    observe: Observer = unobserved,
) -> GenerationResult:
    """The result of a request, while the probes are in the engine."""
    engine.probes += probes
    (handle,) = engine.submit_together(
        [request], [lambda event: observe(replace(event, request=0))], options=run, numbers=[number]
    )
    try:
        return handle.result()
    finally:
        handle.cancel()
        for probe in probes:
            engine.probes.remove(probe)
