"""Maps that a request cannot have, refused when it is submitted: what its words, its steps and the configuration of the
model tell. No torch; the worker, which has the tokens and the layers, looks closer."""

import re
import unicodedata
from collections.abc import Iterable

from undertow.engine.picture_size import picture_size
from undertow.engine.request import GenerationRequest
from undertow.errors import InvalidInput
from undertow.inspection.attention_sites import matches, require_cells, require_layers
from undertow.serving.catalog.entries import ModelEntry
from undertow.serving.inspection import MapOptions
from undertow.unet.config import CrossAttention

MARKS = ("<start>", "<end>", "<padding>")
"""Words that every prompt has (`inspection.word_maps`)."""


def require_maps(maps: MapOptions, request: GenerationRequest, model: ModelEntry) -> None:
    """Errors: `InvalidInput` for words that the prompt lacks, layers, cells and heads that the network lacks, and steps
    that the request lacks."""
    try:
        _require_words(maps, request)
        _require_steps(maps, request)
        _require_layers(maps, request, model)
    except InvalidInput as err:
        raise InvalidInput(f"inspect.attention_maps.{err.argument}", err.value, err.expected, err.remedy) from err


def _require_words(maps: MapOptions, request: GenerationRequest) -> None:
    """Only letters and digits are compared, which weights and other syntax of the dialects leave as they are."""
    prompts = [request.prompt, *(region.prompt for region in request.regions)]
    if maps.side == "unconditional":
        prompts = [request.negative_prompt]
    if maps.words is None and not maps.marks and not any(prompt.strip() for prompt in prompts):
        expected = "words to draw maps of: a prompt that has some"
        raise InvalidInput("words", "all of an empty prompt", expected, "or marks, which every prompt has")
    there = ["".join(_pieces(prompt)) for prompt in prompts]
    for word in maps.words or ():
        if word not in MARKS and not any(all(piece in text for piece in _pieces(word)) for text in there):
            raise InvalidInput("words", repr(word[:100]), "words that stand in the prompt one behind the other")


def _pieces(text: str) -> Iterable[str]:
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold())


def _require_steps(maps: MapOptions, request: GenerationRequest) -> None:
    steps = request.step_count
    more = request.high_resolution
    if more is not None:
        steps += steps if more.steps is None else more.steps
    late = [step for step in maps.at_steps or () if step >= steps]
    if late:
        raise InvalidInput("at_steps", late[0], f"0 to {steps - 1}, the steps of this request")


def _require_layers(maps: MapOptions, request: GenerationRequest, model: ModelEntry) -> None:
    unet = model.subject.unet
    assert unet is not None
    sites = list(unet.cross_attentions())
    require_layers(maps.layers, sites)
    sites = [site for site in sites if maps.layers is None or any(matches(site, one) for one in maps.layers)]
    if request.high_resolution is None:  # whose second pass has layers of other sizes
        height, width = picture_size(request, unet.sample_size, model.subject.factor)[0]
        latents = (height // model.subject.factor, width // model.subject.factor)
        sides = {site: min(unet.grid_of(site, *latents)) for site in sites}
        require_cells(maps.cells, sides.values())
        sites = [site for site in sites if maps.cells is None or sides[site] in maps.cells]
    heads = {name: kind.heads for name, kind, _, _ in unet.attention_layers() if isinstance(kind, CrossAttention)}
    for site in sites:
        own = heads[site.partition(".transformer_blocks")[0]]
        if maps.heads is not None and max(maps.heads) >= own:
            raise InvalidInput("heads", max(maps.heads), f"0 to {own - 1}: {site} has {own}")
