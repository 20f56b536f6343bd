"""What decides the bits of a picture: a log of outcomes is used again under the same circumstances alone."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undertow.adapters.files.opened import files_to_read
from undertow.adapters.manager import AdapterManager
from undertow.attention.chosen import described_kernel
from undertow.attention.measurement import Machine
from undertow.checkpoints.files.hashes import file_hash
from undertow.checkpoints.files.weights import TensorFile
from undertow.checkpoints.read.model import LoadedModel
from undertow.engine.limits import BatchLimits
from undertow.engine.named_files import stored_adapters
from undertow.engine.options import NonFinite
from undertow.engine.request import GenerationRequest
from undertow.errors import InvalidInput
from undertow.nn.quantized import quantized_layers
from undertow.unet.runner import Runner

DIGEST = "sha256:"
"""Before values that say nothing to a reader."""


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What decides the bits of a picture, part by part, so that a refusal can name what differs. Made by
    `Engine.fingerprint`."""

    parts: Mapping[str, str]

    def differences(self, earlier: "Fingerprint") -> list[str]:
        """What is not as it was, in words."""
        names = dict.fromkeys((*self.parts, *earlier.parts))
        return [
            _difference(name, self.parts.get(name), earlier.parts.get(name))
            for name in names
            if self.parts.get(name) != earlier.parts.get(name)
        ]

    def require(self, earlier: "Fingerprint") -> None:
        """Errors: `InvalidInput` for a log that was made under another fingerprint."""
        if found := self.differences(earlier):
            raise InvalidInput(
                "outcomes",
                f"a log of something else: {'; '.join(found)}",
                "one of the same request, weights, adapters, versions, machine and number of rows",
                "draw the request from the beginning, with a new log",
            )


def fingerprint_of(
    request: GenerationRequest,
    *,
    model: LoadedModel,
    refiner: LoadedModel | None,
    manager: AdapterManager,
    runner: Runner,
    limits: BatchLimits,
    non_finite: NonFinite,
    latents: Tensor | None,
) -> Fingerprint:
    """What decides the bits of a request's pictures. Files are identified by their contents, pictures by their pixels.
    Errors: `InvalidInput` for pictures that cannot be read; kinds of `CheckpointError` for adapters that are not there.
    """
    unet = model.require_unet()
    parts = {
        "undertow": _own_version(),
        "machine": _machine(unet.device),
        "number types": _number_types(model),
        "runner": _runner(limits.runner(runner)),
        "attention": described_kernel(unet.kernel),
        "slots": str(manager.capacity),
        "rows of a forward": "any" if limits.padded_to is None else str(limits.padded_to),
        "numbers that are not finite": non_finite,
        "model": _weights(model),
    }
    if refiner is not None:
        parts["refiner"] = _weights(refiner)
    if latents is not None:
        parts["latents"] = _digest(_bytes(latents))
    parts |= {f"request.{name}": value for name, value in _request(request)}
    parts |= {f"adapter {title}": value for title, value in _adapters(request, manager)}
    parts |= {f"textual inversion {name}": value for name, value in _embeddings(request, model)}
    return Fingerprint(parts=parts)


@cache
def _own_version() -> str:
    """Which is read from a file, as everything else takes together."""
    return version("undertow")


def _runner(runner: Runner) -> str:
    may = runner.capabilities
    mode = getattr(runner, "mode", None)
    return (
        type(runner).__name__
        + ("" if may.merging else ", frozen")
        + ("" if may.repeatable else ", in the background")
        + ("" if mode is None else f", {mode}")
    )


def _machine(device: torch.device) -> str:
    here = Machine.here(device)
    if here.device == "cuda":
        flags = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32)
        kind = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()} {flags}"
    else:
        kind = f"{torch.backends.cpu.get_cpu_capability()}, {here.threads} threads"
    return f"{here.name}, {kind}, torch {here.torch_version}, {torch.get_float32_matmul_precision()} products"


def _number_types(model: LoadedModel) -> str:
    networks = {"unet": model.unet, "vae": model.vae, "text": None if model.text is None else model.text.encoders[0]}
    types = {name: network.dtype for name, network in networks.items() if network is not None}
    numbers = ", ".join(f"{name} {str(dtype).removeprefix('torch.')}" for name, dtype in types.items())
    return "; ".join((numbers, *_quantized(model)))


def _quantized(model: LoadedModel) -> Iterator[str]:
    """Which layers of which network compute with which quantized weights."""
    networks = {"unet": model.unet, "vae": model.vae}
    networks |= {} if model.text is None else {one.kind: one for one in model.text.encoders}
    for name, network in networks.items():
        if network is not None and (layers := quantized_layers(network)):
            schemes = " and ".join(sorted(set(layers.values())))
            yield f"{name} with {schemes} in {len(layers)} layers ({_digest(*map(str, sorted(layers.items())))})"


def _weights(model: LoadedModel) -> str:
    """By the contents of all files that the model was read from."""
    every = [home.source.weights for home in model.homes.values()]
    files = [file for one in every for file in (_there(one.files) or [one.path])]
    return _digest(*(file_hash(file) for file in dict.fromkeys(files)))


def _there(files: Iterable[TensorFile]) -> list[Path]:
    """None for a pickle, which was read from a temporary copy."""
    return [file.path for file in files if file.path.is_file()]


def _request(request: GenerationRequest) -> Iterator[tuple[str, str]]:
    """Each field that is not empty. Adapters are identified by their files, wherever those lie."""
    described = request.to_json(embed=False, files=False)
    for adapter in stored_adapters(described):
        adapter.pop("source")
    for name, value in described.items():
        if value not in (None, "", [], {}):
            yield name, _digest(json.dumps(_without_names(value), sort_keys=True))


def _adapters(request: GenerationRequest, manager: AdapterManager) -> Iterator[tuple[str, str]]:
    """By title, the contents of the files, and of those of an image encoder that is named; of what lies on the Hub its
    name, whose revision nobody promises."""
    for adapter in request.all_adapters:
        encoder = () if adapter.encoder is None else (adapter.encoder,)
        places = (manager.bundled.locate(adapter.source), *encoder)
        yield adapter.title, _digest(*(content for place in places for content in _contents(place)))


def _contents(source: str | Path) -> list[str]:
    place = Path(source).expanduser()
    files = [place] if place.is_file() else files_to_read(place)
    return [file_hash(file) for file in files] if files else [str(source)]


def _embeddings(request: GenerationRequest, model: LoadedModel) -> Iterator[tuple[str, str]]:
    """By name, the vectors of the textual inversions that the prompts use."""
    texts = (request.prompt, request.negative_prompt, *(region.prompt for region in request.regions))
    if (stack := model.text) is not None:
        for name in stack.embeddings_in(texts, request.dialect):
            yield name, _digest(*(_bytes(stack.inversions.vectors(name, kind)) for kind in stack.kinds))


def _bytes(tensor: Tensor) -> bytes:
    return str(tensor.dtype).encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes()


def _without_names(value: Any) -> Any:
    """Without what the files of pictures are called, beside the hash of their pixels."""
    if isinstance(value, list):
        return [_without_names(one) for one in value]
    if not isinstance(value, dict):
        return value
    is_picture = "sha256" in value and "size" in value
    return {key: _without_names(one) for key, one in value.items() if not (is_picture and key == "name")}


def _digest(*contents: str | bytes) -> str:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content.encode() if isinstance(content, str) else content)
        digest.update(b"\0")
    return DIGEST + digest.hexdigest()[:32]


def _difference(name: str, now: str | None, then: str | None) -> str:
    if now is None or then is None:
        return f"{name} was {'not ' if then is None else ''}given"
    if now.startswith(DIGEST) or then.startswith(DIGEST):
        return f"{name} is another"
    return f"{name} was {then}, and is {now}"
