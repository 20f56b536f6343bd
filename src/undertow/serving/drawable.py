"""Whether a model draws a request, by its configs and headers alone: what the engine would refuse once the model is
loaded is refused at the door, by the engine's own rules (`engine.fitting`). Imports no torch."""

from undertow.engine.fitting import ModelFacts, require_fitting
from undertow.engine.named_sampler import KnownLevels
from undertow.engine.request import GenerationRequest
from undertow.serving.catalog.entries import ModelEntry


def require_drawable(request: GenerationRequest, model: ModelEntry) -> None:
    """Errors: `InvalidInput` for what does not fit the model, or each other."""
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


def _levels(request: GenerationRequest, model: ModelEntry) -> KnownLevels:
    found = model.levels
    if found is None:
        return KnownLevels()
    highest = found.highest(comfyui=request.noise_convention == "comfy")
    return KnownLevels(path=found.path, trained=found.steps, highest=highest)
