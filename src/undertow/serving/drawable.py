"""Whether a model draws a request, by its configs and headers alone: what the engine would refuse once the model is
loaded is refused at the door, by the engine's own rules (`engine.fitting`, `adapters.rules`). Imports no torch."""

from collections.abc import Iterator, Mapping, Sequence

from undertow.adapters.adapter import Adapter
from undertow.adapters.rules import (
    require_blocks,
    require_control,
    require_lora,
    require_masks,
    require_shape,
    require_white,
    residual_names,
)
from undertow.adapters.stack import AdapterStack
from undertow.engine.fitting import ModelFacts, require_fitting
from undertow.engine.named_sampler import KnownLevels
from undertow.engine.picture_size import Size, largest_size, picture_size
from undertow.engine.request import GenerationRequest
from undertow.serving.catalog.entries import AdapterEntry, ModelEntry
from undertow.unet.config import UNetConfig
from undertow.unet.leaves import layers_with_weights


def require_drawable(request: GenerationRequest, model: ModelEntry, used: Mapping[str, AdapterEntry]) -> None:
    """used: the adapters of the request, by the names that it has for them. Errors: `InvalidInput` for what does not
    fit the model, or each other."""
    unet, vae = model.subject.unet, model.subject.vae
    assert unet is not None
    assert vae is not None
    facts = ModelFacts(
        unet=unet,
        latent_channels=vae.latent_channels,
        factor=model.subject.factor,
        sampler=model.sampler,
        levels=_levels(request, model),
        text_layers=model.text_layers,
    )
    require_fitting(request, facts)
    trained, factor = unet.sample_size, facts.factor
    sizes = picture_size(request, trained, factor)[0], largest_size(request, trained, factor)
    for adapter in _acting(request):
        entry = used.get(str(adapter.source))
        if entry is not None:
            _require_adapter(adapter, entry.kind, unet, sizes)


def _levels(request: GenerationRequest, model: ModelEntry) -> KnownLevels:
    found = model.levels
    if found is None:
        return KnownLevels()
    highest = found.highest(comfyui=request.noise_convention == "comfy")
    return KnownLevels(path=found.path, trained=found.steps, highest=highest)


def _acting(request: GenerationRequest) -> Iterator[Adapter]:
    """Adapters that act for certain: which of a stack do within its budget, the engine finds out."""
    if not (isinstance(request.adapters, AdapterStack) and request.adapters.budget_bytes is not None):
        yield from request.adapters
    for region in request.regions:
        yield from region.adapters


def _require_adapter(adapter: Adapter, kind: str, unet: UNetConfig, sizes: Sequence[Size]) -> None:
    """kind: of its catalog entry. sizes: of the picture, in each pass. Errors: `InvalidInput`."""
    match kind:
        case "LoRA":
            require_lora(adapter, kind)
            require_blocks(adapter, layers_with_weights(unet))
        case "IP-Adapter":
            require_masks(adapter)
            require_blocks(adapter, list(unet.cross_attentions()))
        case _:
            controls = kind != "T2I-Adapter"
            require_control(adapter, kind, modes=controls)
            if controls:
                require_blocks(adapter, residual_names(unet))
            for picture, size in ((picture, size) for picture in adapter.images() for size in sizes):
                require_shape(f"image of {adapter.title}", picture, size)
    for mask in adapter.masks():
        for size in sizes:
            require_shape(f"mask of {adapter.title}", mask, size)
        require_white(f"mask of {adapter.title}", mask)
