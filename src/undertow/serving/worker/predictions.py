"""Predictions as a service: `predict_noise` for contexts that came in a safetensors file, answered by one forward.

In: tensors "0.latents", "0.text_embeddings" and, where they are wanted, "0.negative_embeddings", "0.pooled",
"0.negative_pooled", "0.time_ids" of the first context, "1...." of the next; the metadata `contexts` is a JSON list of
{"timestep": 500, "guidance_scale": 4.0, "adapters": [{"source": "mosaic", "scale": 0.7}]}; a ControlNet or an
IP-Adapter has its `image` there, in base64 or as the hash of an upload. Out: "0.noise", "1.noise".
The shapes are those of `PredictionContext`.
"""

from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from undertow.adapters.adapter import Adapter
from undertow.engine.context import PredictionContext
from undertow.serving.artifacts import ArtifactFolder
from undertow.serving.catalog.catalog import Catalog
from undertow.serving.jobs import JobSpec
from undertow.serving.request_json import require_same_files, stored_picture, with_pictures
from undertow.serving.worker.models import Loaded, Models

SAFETENSORS = "application/x-safetensors"


def predicted(spec: JobSpec, artifacts: ArtifactFolder, catalog: Catalog, models: Models) -> bytes:
    """The answer to a job of predictions. Errors: `InvalidInput` for tensors that do not fit the model, `Refused` for
    files that have changed, those of loading a model."""
    require_same_files(spec, catalog)
    content = artifacts.read(spec.request["artifact"])
    loaded = models.take(spec.model)
    contexts = [
        _context(
            with_pictures(described, lambda place, given: stored_picture(artifacts, place, given)),
            index,
            load(content),
            loaded,
            catalog,
        )
        for index, described in enumerate(spec.request["contexts"])
    ]
    found = loaded.service.predict_noise(contexts)
    return save({f"{index}.noise": noise.cpu().contiguous() for index, noise in enumerate(found)})


def _context(
    described: dict[str, Any], index: int, tensors: dict[str, Tensor], loaded: Loaded, catalog: Catalog
) -> PredictionContext:
    parameter = next(loaded.service.unet.parameters())
    given: dict[str, Any] = {
        name.partition(".")[2]: tensor.to(parameter.device, parameter.dtype)
        for name, tensor in tensors.items()
        if name.partition(".")[0] == str(index)
    }
    adapters: list[Adapter] = []
    for one in described.get("adapters", ()):
        entry = catalog.adapter(one["source"], loaded.entry.name)
        source = entry.name if entry.model is not None else str(entry.path)
        adapters.append(Adapter(source, scale=float(one.get("scale", 1.0)), image=one.get("image")))
    timestep = described["timestep"]
    return PredictionContext(
        **given,
        timestep=torch.tensor(timestep, dtype=torch.float32) if isinstance(timestep, list) else float(timestep),
        guidance_scale=float(described.get("guidance_scale", 1.0)),
        adapters=tuple(adapters),
    )
