"""Settings of a request that cannot act on it.

The rule: a setting that cannot act is noted in the report, and the pictures are drawn. Forms, presets and requests that
are changed step by step carry such settings along, and they hurt nobody but those who wait for their effect. What
contradicts itself (a mask of another size, a variation without its seed) is refused instead. A setting counts where it
is not as it is by default.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from undertow.adapters.adapter import Adapter
from undertow.encoders.prompts.catalogue import DIALECTS, parse_prompt
from undertow.encoders.text_stack import TextStack
from undertow.engine.guidance_method import NamedMethod
from undertow.engine.idle_guidance import idle_guidance
from undertow.engine.request import MODEL_SAMPLER, GenerationRequest
from undertow.known_names import split_sampler
from undertow.records import defaults


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What decides whether a setting can act, besides the request itself.

    edits: the model edits a picture (InstructPix2Pix). refined: there is a refiner. sized: the model is told sizes
    (SDXL). by_folder: the model's folder says the sampler and its grid. windows: of the pass that has most. steps: of
    each pass in which adapters act. methods: of guidance, as this model takes them.
    """

    edits: bool
    refined: bool
    sized: bool
    by_folder: bool
    windows: int
    steps: tuple[int, ...]
    methods: tuple[NamedMethod, ...]


def idle_settings(request: GenerationRequest, around: Circumstances) -> Iterator[str]:
    """A sentence for each reason."""
    usual = defaults(GenerationRequest)
    changed = {name for name in usual if getattr(request, name) != usual[name]}
    for where, names in _places(request, around).items():
        if idle := [name for name in names if name in changed]:
            yield f"{_joined(idle)} {'has' if len(idle) == 1 else 'have'} no effect {where}"
    ending = split_sampler(request.sampler)[1]
    if ending is not None and request.schedule is not None and request.schedule.lower() != ending:
        yield f"the grid in the sampler's name, {ending}, has no effect beside schedule {request.schedule!r}"
    if request.forecast_steps is not None and all(all(request.forecast_steps.computed(each)) for each in around.steps):
        yield f"forecast_steps has no effect: all of {max(around.steps, default=0)} steps are computed"
    yield from idle_guidance(around.methods, request.guidance_scale, around.steps)
    if request.views is not None and around.windows == 1:
        yield "views have no effect on a picture that fits into one window"
    for adapter in request.all_adapters:
        yield from _idle_adapter(adapter, around.steps)


def _places(request: GenerationRequest, around: Circumstances) -> Mapping[str, Collection[str]]:
    """Where which settings cannot act, of what holds for this request."""
    starts_from_image = request.image is not None and not (around.edits and request.mask is None)
    holds = {
        "without an image": (request.image is None, ("strength",)),
        "on a model that edits pictures": (request.image is not None and not starts_from_image, ("strength",)),
        "without an image or a second pass": (
            request.image is None and request.high_resolution is None,
            ("strength_convention",),
        ),
        "on a model that edits no pictures": (not around.edits, ("image_guidance_scale",)),
        "without a mask": (request.mask is None, ("paste",)),
        "beside sigmas": (
            request.sigmas is not None,
            # What a picture's description says of its sigmas asks for nothing else.
            (*(("steps",) if request.steps != request.step_count else ()), "schedule", "discard_penultimate"),
        ),
        "on the grid of the model's own folder": (around.by_folder, ("discard_penultimate",)),
        "with a variation_strength of 0": (not request.variation_strength, ("variation_seed",)),
        "without regions": (not request.regions, ("regions_by",)),
        "without a refiner": (not around.refined, ("refiner_switch",)),
        "on a model that is told no sizes": (not around.sized, ("original_size", "crop", "target_size")),
        f"with guidance_method {request.guidance_method!r}": (True, tuple(_idle_scales(around))),
    }
    return {where: names for where, (holds_here, names) in holds.items() if holds_here}


def _idle_scales(around: Circumstances) -> Iterator[str]:
    """The scales of guidance that none of the request's methods takes."""
    if not any(each.takes_scale for each in around.methods):
        yield "guidance_scale"
    if around.edits and all(each.name != "cfg" for each in around.methods):
        yield "image_guidance_scale"


def follows_folder(request: GenerationRequest, own: object) -> bool:
    """Whether the model's folder says how the request is sampled. own: what the folder says; text or nothing where
    that is not known."""
    asked = request.sampler != MODEL_SAMPLER or request.schedule is not None or request.sigmas is not None
    return not asked and own is not None and not isinstance(own, str)


def idle_negative_prompt(request: GenerationRequest, *, distilled: bool) -> str:
    """Why a negative prompt is not asked for. distilled: whether the model's guidance is in its weights."""
    if request.guidance_scale == 1:
        reason = "guidance_scale 1 turns guidance off"
    elif distilled:
        reason = "the guidance of this model is in its weights, and asks for none"
    else:
        reason = f"guidance_method {request.guidance_method!r} asks for none"
    return f"negative_prompt has no effect: {reason}"


def embedding_notes(request: GenerationRequest, text: TextStack) -> Iterator[str]:
    """Of the embeddings that the request relies on: those that no prompt names, and those that stand for a word."""
    prompts = (request.prompt, request.negative_prompt, *(region.prompt for region in request.regions))
    words = DIALECTS[request.dialect].embeddings == "words"
    trees = [parse_prompt(prompt, request.dialect).tree for prompt in prompts]
    used = {name for tree in trees for name in text.inversions.named_in(tree, in_texts=words)}
    called = {
        text.inversions.alike(name): name for name in reversed(request.embeddings)
    }  # each once, by its first name
    for names, name in called.items():
        if used.isdisjoint(names):
            yield f"the embedding {name!r} has no effect: no prompt has {'' if words else 'embedding:'}{name} in it"
    for name in sorted(used if words else ()):
        if _is_word(name, text):
            yield f"{name!r} in the prompt is the embedding of that name, in place of the word"


def _is_word(name: str, text: TextStack) -> bool:
    """Whether a name means something by itself: it has words that the model knows, or is a token of CLIP's."""
    if text.vocabulary is not None:
        return set(name.lower().split()) <= set(text.vocabulary.words)
    return name.isalpha() and len(text.encoders[0].tokenizer.encode(name)) == 1


def _idle_adapter(adapter: Adapter, passes: tuple[int, ...]) -> Iterator[str]:
    if any(adapter.scales) and not any(adapter.gain(step, steps) for steps in passes for step in range(steps)):
        share = f"from {adapter.start:g} to {adapter.end:g}"
        yield f"{adapter.title} acts in none of the {max(passes)} steps: no whole one lies {share} of them"


def _joined(names: Collection[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
