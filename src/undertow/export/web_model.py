"""What a page in a browser must know of a model beside its networks: tokenizer, noise levels, samplers, words.

All mathematics that depends on the model is done here, once: a page finds a table of levels and factors for each number
of steps, and reads no schedule.
"""

from collections.abc import Iterator
from importlib import metadata
from typing import Any

import torch

from undertow.checkpoints.read.model import LoadedModel
from undertow.diffusion.denoiser import Preconditioning
from undertow.diffusion.paths import RectifiedFlow, starting_noise
from undertow.encoders.tokenizer import FolderTokenizer
from undertow.encoders.tokenizer_files import EOS
from undertow.engine.chosen_sampler import ChosenSampler, choose_sampler
from undertow.engine.request import MODEL_SAMPLER, GenerationRequest, as_request
from undertow.errors import InvalidInput
from undertow.export.parts import Size
from undertow.sampling.catalogue import find_sampler

SAMPLERS = ("dpmpp_2m", "euler", "euler_a", "lcm")
"""Those that page/try/sampling.ts has too."""

STEPS, MOST_STEPS = 8, 50
"""Those that the page begins with where the model suggests none, so that a picture takes about a second, and the most
that it offers."""

BACKGROUND = "white"


def page_model(model: LoadedModel, size: Size) -> dict[str, Any]:
    """The contents of `model.js`. size: of pictures, (height, width). Errors: `InvalidInput` for a model that the page
    cannot draw with; `MissingComponent`."""
    require_drawable(model)
    text, vae, unet = model.require_text(), model.require_vae(), model.require_unet()
    (encoder,) = text.encoders
    assert isinstance(encoder.tokenizer, FolderTokenizer)
    request = as_request("", **({"steps": STEPS} | model.suggested))
    samplers, grids = _samplers(model)
    return {
        "name": model.path.name,
        "version": metadata.version("undertow"),
        "latents": [unet.config.in_channels, size[0] // vae.config.factor, size[1] // vae.config.factor],
        "size": [size[1], size[0]],
        "positions": encoder.config.positions,
        "tokenizer": {**_rules(encoder.tokenizer), "pad": encoder.pad},
        "samplers": samplers,
        "grids": grids,
        "steps": request.steps,
        "guidance": request.guidance_scale,
        **_vocabulary(model),
    }


def require_drawable(model: LoadedModel) -> None:
    """Errors: `InvalidInput` for what the page has no code for."""
    text, vae, unet = model.require_text(), model.require_vae(), model.require_unet()
    first, *others = text.encoders
    lacks = {
        "reads two texts or a pooled vector": bool(others) or text.pooled_width is not None,
        "has CLIP's official vocabulary": not isinstance(first.tokenizer, FolderTokenizer),
        "reads a picture beside the noise": unet.config.in_channels != vae.config.latent_channels,
        "takes the guidance scale as an input": unet.config.guidance_dim is not None,
    }
    for what in (what for what, true in lacks.items() if true):
        expected = "one with a text encoder, a tokenizer of its own and an autoencoder, for a page"
        raise InvalidInput("model", f"{model.path.name}, which {what}", expected, "--to onnx has no such limit")


def _rules(tokenizer: FolderTokenizer) -> dict[str, Any]:
    ids, merges = tokenizer.rules()
    return {"ids": ids, "merges": merges, "bos": tokenizer.bos, "eos": tokenizer.eos, "unknown": ids[EOS]}


def _samplers(model: LoadedModel) -> tuple[dict[str, Any], list[Any]]:
    """Samplers by name, each with the algorithm and the place of its tables, and the tables: one for each number of
    steps from 1 on. Equal ones are kept once."""
    found: dict[str, Any] = {}
    tables: list[Any] = []
    for name, sampler in _offered(model):
        table = [_grid(model, sampler, steps) for steps in range(1, MOST_STEPS + 1)]
        if table not in tables:
            tables.append(table)
        found[name] = {"algorithm": sampler.name, "table": tables.index(table)}
    return found, tables


def _offered(model: LoadedModel) -> Iterator[tuple[str, ChosenSampler]]:
    """The sampler that the model's folder names comes first, if the page has it and it ends without noise."""
    for name in (MODEL_SAMPLER, *SAMPLERS):
        chosen = choose_sampler(GenerationRequest(prompt="", sampler=name), model.schedule, model.sampler)
        if chosen.name not in SAMPLERS or chosen.options or chosen.grid(MOST_STEPS)[-1] > 0:
            continue
        if find_sampler(chosen.name, model.schedule.path).native_flow or not _is_flow(model):
            yield name, chosen


def _is_flow(model: LoadedModel) -> bool:
    return isinstance(model.schedule.path, RectifiedFlow)


def _grid(model: LoadedModel, sampler: ChosenSampler, steps: int) -> dict[str, Any]:
    """Where sampling starts, and for each level sigma, timestep, and what multiplies x on its way in, x and the
    prediction on their way out."""
    sigmas = sampler.grid(steps)
    at = Preconditioning(
        parameterization=model.parameterization, schedule=sampler.levels, timestep_map=sampler.timestep_map
    )
    levels = torch.tensor(sigmas[:-1], dtype=torch.float64)
    ones, zeros = torch.ones(len(levels), 1), torch.zeros(len(levels), 1)
    inputs, timesteps = at.inputs(ones, levels)
    skip, output = at.denoised(zeros, ones, levels), at.denoised(ones, zeros, levels)
    rows = zip(sigmas, timesteps.tolist(), *(one.flatten().tolist() for one in (inputs, skip, output)), strict=False)
    first = starting_noise(model.schedule.path, torch.ones(1), sigmas[0], sampler.noise_at(sigmas[0]))
    return {"start": first.item(), "levels": [list(row) for row in rows]}


def _vocabulary(model: LoadedModel) -> dict[str, Any]:
    """Examples, words and emoji of a model that knows few words."""
    known = model.require_text().vocabulary
    if known is None:
        return {"examples": [], "words": [], "characters": {}}
    behind = f" on {BACKGROUND} background" if BACKGROUND in known.colors else ""
    return {
        "examples": [name + behind for name in known.emoji],
        "words": list(known.words),
        "characters": {character: name for name, character in known.characters().items()},
    }
