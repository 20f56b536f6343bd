"""How much work a request is, from its fields alone: cells, rows and steps, by which keys are treated fairly and the
clock says when. The engine counts exactly; here a row more or less does no harm, since costs are learned from what was
measured."""

from math import ceil

from undertow.encoders.prompts.catalogue import parse_prompt
from undertow.encoders.prompts.tree import Composed
from undertow.engine.parts import StepForecast
from undertow.engine.picture_size import Size, largest_size, picture_size
from undertow.engine.request import MODEL_SAMPLER, GenerationRequest
from undertow.known_names import split_guidance
from undertow.serving.catalog.entries import ModelEntry
from undertow.serving.jobs import JobWork
from undertow.step_counts import evaluations, kept_steps

PERTURBED = ("pag", "seg", "sag")
"""Guidance methods that ask for one row more."""
UNGUIDED = ("none", "free_u", *PERTURBED)
"""Methods that by themselves ask for no negative prompt."""
CFG_PP = ("_cfg_pp", "CFG++")
"""How samplers end that ask for the negative prompt also without guidance."""
EVERYWHERE = (0.0, 0.0, 1.0, 1.0)
MARGIN = 8
"""Cells by which seamless latents are continued on each side (`engine.layout`)."""
PINNED_CELLS = {"cpu": 1024}
PINNED_CELLS_ON_ACCELERATORS = 65536
"""Latent cells of a forward of reproducible jobs. On a CPU a forward of more draws few pictures more a second, and one
picture that is alone computes as many; an accelerator is not filled by less (`engine.limits`)."""
MOST_PINNED = 16


def pinned_rows(cells: int, rows: int, device: str) -> int:
    """Rows of every forward of a reproducible job, by the request and the kind of device alone: another number rounds
    differently, so the same request must get the same one whenever, wherever and after whatever it is accepted. cells:
    of a row. rows: of one picture. device: a kind, such as cpu."""
    together = PINNED_CELLS.get(device, PINNED_CELLS_ON_ACCELERATORS) // max(1, cells)
    return max(min(2, rows), min(MOST_PINNED, together))


def work_of(request: GenerationRequest, model: ModelEntry) -> JobWork:
    """Of all pictures of a request; passes of another size count as steps of the first. Errors: `InvalidInput` for a
    size that the model cannot draw."""
    unet = model.subject.unet
    assert unet is not None
    factor = model.subject.factor
    size, _ = picture_size(request, unet.sample_size, factor)
    first, second = passes(request)
    largest = largest_size(request, unet.sample_size, factor)
    steps = first + second * _windowed(request, largest, model) / _windowed(request, size, model)
    rows = rows_of(request, model) * _windows(request, size, model) * request.count
    return JobWork(
        cells=_seen(request, size, model),
        rows=rows,
        adapted_rows=rows if request.all_adapters else 0,
        steps=ceil(steps),
        pictures=request.count,
    )


def cost_of(work: JobWork, model: ModelEntry) -> float:
    """Row-steps, in pictures of the model's own size."""
    unet = model.subject.unet
    assert unet is not None
    return max(1.0, work.rows * work.steps * work.cells / unet.sample_size**2)


def passes(request: GenerationRequest) -> tuple[int, int]:
    """Calls of the network for one picture, by pass: the first, and the second of a request for high resolution."""
    steps, first = request.step_count, request.drawn_steps
    each = 1 if request.sampler == MODEL_SAMPLER else evaluations(request.sampler)
    more = request.high_resolution
    second = 0
    if more is not None:
        second = kept_steps(steps if more.steps is None else more.steps, more.strength, request.strength_convention)
    return _calls(first, each, request.forecast_steps), _calls(second, each, request.forecast_steps)


def _calls(steps: int, each: int, forecast: StepForecast | None) -> int:
    """Of a pass; the last step, to no noise at all, takes one."""
    computed = steps if forecast is None else sum(forecast.computed(steps))
    return max(0, each * computed - (each - 1))


def rows_of(request: GenerationRequest, model: ModelEntry) -> int:
    """Rows of one call of the network for one picture in one window."""
    unet = model.subject.unet
    assert unet is not None
    names = [name for name, _ in split_guidance(request.guidance_method)]
    tree = parse_prompt(request.prompt, request.dialect).tree
    prompts = len(tree.parts) if isinstance(tree, Composed) else 1
    regions = len(request.regions) if request.regions_by == "estimates" else 0
    perturbed = sum(name in PERTURBED for name in names)
    if any(region.box == EVERYWHERE for region in request.regions) and regions:
        prompts = 0  # nobody sees the request's own
    conditional = (prompts + regions) * (1 + perturbed)
    edits = unet.in_channels == 2 * unet.out_channels
    guided = request.guidance_scale != 1 and any(name not in UNGUIDED for name in names)
    guided |= prompts > 1 or "sag" in names or request.sampler.endswith(CFG_PP)
    against = 0 if unet.guidance_dim is not None or not guided else 2 if edits else 1
    return conditional + against


def _seen(request: GenerationRequest, size: Size, model: ModelEntry) -> int:
    """Cells of what the network sees at once."""
    height, width = _window(request, size, model)
    height += 2 * MARGIN * (request.seamless in ("y", "both"))
    width += 2 * MARGIN * (request.seamless in ("x", "both"))
    return height * width


def _windowed(request: GenerationRequest, size: Size, model: ModelEntry) -> int:
    """Cells of all windows of a picture."""
    return _seen(request, size, model) * _windows(request, size, model)


def _window(request: GenerationRequest, size: Size, model: ModelEntry) -> Size:
    factor, unet = model.subject.factor, model.subject.unet
    assert unet is not None
    height, width = size[0] // factor, size[1] // factor
    if request.views is None:
        return height, width
    side = unet.sample_size if request.views.window is None else max(1, request.views.window // factor)
    return min(side, height), min(side, width)


def _windows(request: GenerationRequest, size: Size, model: ModelEntry) -> int:
    if request.views is None:
        return 1
    factor = model.subject.factor
    count = 1
    for length, window in zip(size, _window(request, size, model), strict=True):
        cells = length // factor
        stride = max(1, int(window * (1 - request.views.overlap)))
        count *= 1 if window >= cells else 1 + ceil((cells - window) / stride)
    return count
