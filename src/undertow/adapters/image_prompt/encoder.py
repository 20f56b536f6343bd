"""Image encoders: read from a folder or file, and found for an IP-Adapter beside its file or in the model's folder."""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undertow.adapters.adapter import Adapter
from undertow.adapters.image_prompt.nearby import CONFIG, encoder_folders
from undertow.adapters.image_prompt.projection import encoder_for
from undertow.adapters.image_prompt.prompt import ImagePrompt
from undertow.checkpoints.files.atomic import read_json
from undertow.checkpoints.files.locate import locate
from undertow.checkpoints.files.model_folder import folder_weights, variant_order
from undertow.checkpoints.files.weights import Weights, open_weights
from undertow.checkpoints.identify.unsupported import refuse_quantized
from undertow.encoders.image import ImageEncoder
from undertow.encoders.image_config import ClipVisionConfig, published_vision_config
from undertow.errors import AdapterMismatch, MissingComponent, UnknownCheckpoint, UnsupportedModel
from undertow.memory.adapter_networks import AdapterNetworks, WholeFile
from undertow.memory.component import READ_ONCE
from undertow.processor import computes

PREPROCESSOR = "preprocessor_config.json"
OPEN_CLIP = "visual.conv1.weight"


def load_image_encoder(
    source: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    variant: str | None = None,
) -> ImageEncoder:
    """The CLIP vision network at `source`: a folder with config.json and model.safetensors, a pipeline's folder with an
    `image_encoder`, or a safetensors file, in such a folder or of a published network and by itself; also on the Hub.

    `preprocessor_config.json` counts where there is one, also a pipeline's in `feature_extractor`. dtype: `None` keeps
    the file's. variant: which spelling of the weights, "fp16" first when `None`.
    Errors: `UnknownCheckpoint`, `MissingComponent`, `UnsupportedModel`, `KeyMismatch`, `ConfigError`, `CorruptFile`,
    `UnsafeFile`.
    """
    return _Files.at(locate(source, variant=variant), variant).encoder(dtype, device)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Files:
    """An image encoder's files. place: as it was given. folder: whose configs count."""

    place: Path
    folder: Path
    weights: Weights

    @classmethod
    def at(cls, place: Path, variant: str | None = None) -> "_Files":
        folder = _folder(place) if place.is_dir() else place.parent
        weights = folder_weights(folder, variant_order(variant)) if place.is_dir() else open_weights(place)
        return cls(place=place, folder=folder, weights=weights)

    @property
    def version(self) -> Hashable:
        status = [(file.path, file.path.stat()) for file in self.weights.files]
        return tuple((path, one.st_size, one.st_mtime_ns) for path, one in status)

    def size_bytes(self, device: torch.device) -> int:
        """Where it computes, at most: a whole CLIP holds a text network too, which is left."""
        tensors = self.weights.tensors.values()
        kept = all(computes(one.dtype, device) for one in tensors if one.dtype.is_floating_point)
        return sum(one.size_bytes if kept else one.count * torch.float32.itemsize for one in tensors)

    def encoder(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> ImageEncoder:
        refuse_quantized(self.weights.path, self.weights.tensors, self.weights.metadata)
        return ImageEncoder.from_tensors(
            _Lazy(self.weights),
            _config(self.place, self.folder, self.weights),
            preprocessing=_preprocessing(self.folder),
            dtype=dtype,
            device=device,
            source=self.weights.path,
        )


class _Lazy(Mapping[str, Tensor]):
    """The tensors of a file, each read on access."""

    def __init__(self, weights: Weights):
        self._weights = weights

    def __getitem__(self, name: str) -> Tensor:
        return self._weights.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights.tensors)

    def __len__(self) -> int:
        return len(self._weights.tensors)


def _folder(place: Path) -> Path:
    if (place / "image_encoder" / CONFIG).is_file():
        return place / "image_encoder"
    if (place / "model_index.json").is_file():
        raise MissingComponent(place, "image_encoder", "give the folder of an image encoder itself")
    if not (place / CONFIG).is_file():
        raise UnknownCheckpoint(place, f"no {CONFIG}", "an image encoder's folder holds config.json")
    return place


def _config(place: Path, folder: Path, weights: Weights) -> ClipVisionConfig | Mapping[str, Any]:
    """As the folder says; of a file by itself, the published architecture with its shapes."""
    if OPEN_CLIP in weights.tensors:
        what = "a vision network under open_clip's names"
        raise UnsupportedModel(weights.path, what, "give it as transformers saves it (CLIPVisionModelWithProjection)")
    if (folder / CONFIG).is_file():
        return read_json(folder / CONFIG)
    config = published_vision_config({name: tuple(info.shape) for name, info in weights.tensors.items()})
    if config is None:
        problem = "no published CLIP vision network, and no config.json beside it"
        raise UnknownCheckpoint(place, problem, "give the folder that transformers saved")
    return config


def _preprocessing(folder: Path) -> dict[str, Any] | None:
    for path in (folder / PREPROCESSOR, folder.parent / "feature_extractor" / PREPROCESSOR):
        if path.is_file() and (path.parent == folder or folder.name == "image_encoder"):
            return read_json(path)
    return None


class Encoders:
    """Finds image encoders for IP-Adapters, and keeps them. device: where they run. folder: the model's, which may
    contain one. networks: that come and go; an encoder is one of them."""

    def __init__(self, device: torch.device, folder: Path | None = None, networks: AdapterNetworks | None = None):
        self._device = device
        self._folder = folder
        self._networks = AdapterNetworks() if networks is None else networks
        self._read: dict[str, ImageEncoder] = {}

    def for_adapter(self, adapter: Adapter, prompt: ImagePrompt) -> ImageEncoder:
        """The encoder that the adapter names; else the first that fits among `image_encoder` beside its file, one
        folder up, as the authors publish it, and in the model's folder. Errors: `MissingComponent`; `AdapterMismatch`
        when none fits; those of `load_image_encoder`."""
        if adapter.encoder is not None:
            encoder = self._at(adapter.encoder)
            prompt.require_encoder(encoder)
            return encoder
        place = Path(adapter.source)
        place = place if place.exists() else prompt.path  # on the Hub, where it was downloaded to
        refusal: AdapterMismatch | None = None
        for folder in encoder_folders(place, self._folder):
            encoder = self._at(folder)
            try:
                prompt.require_encoder(encoder)
            except AdapterMismatch as err:
                refusal = err if refusal is None else refusal
            else:
                return encoder
        if refusal is not None:
            raise refusal
        raise MissingComponent(
            prompt.path,
            "image encoder",
            f"Adapter(..., encoder=FOLDER) with {encoder_for(prompt.wants, prompt.feature_dim)}",
        )

    def _at(self, source: str | Path) -> ImageEncoder:
        key = str(source)
        if key not in self._read:
            files = _Files.at(locate(source))
            with self._networks.arriving(files.size_bytes(self._device)):
                encoder, version = self._read_from(files)
                home = WholeFile(path=files.place, version=version, load=partial(self._again, files.place))
                self._networks.add(encoder, "image encoder", READ_ONCE, home)
            self._read[key] = encoder
        return self._read[key]

    def _again(self, place: Path) -> tuple[ImageEncoder, Hashable]:
        return self._read_from(_Files.at(place))

    def _read_from(self, files: _Files) -> tuple[ImageEncoder, Hashable]:
        encoder, version = files.encoder().to(self._device), files.version
        return encoder if computes(encoder.dtype, self._device) else encoder.float(), version
