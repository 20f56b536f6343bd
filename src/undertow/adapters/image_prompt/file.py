"""Reading IP-Adapters: safetensors, the authors' pickles, and U-Nets that diffusers saved with an adapter in them."""

import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from undertow.adapters.image_prompt.fitting import projection_of, require_fit
from undertow.adapters.image_prompt.names import Names, read_names
from undertow.adapters.image_prompt.prompt import ImagePrompt
from undertow.adapters.image_prompt.refusals import require_image_prompt
from undertow.adapters.image_prompt.sites import site_numbers
from undertow.checkpoints.health import Finding, examine
from undertow.checkpoints.loading import build_on_meta
from undertow.checkpoints.opening import locate
from undertow.checkpoints.pickled import as_safetensors, is_pickle
from undertow.checkpoints.shards import folder_weights, variant_order
from undertow.checkpoints.weights import Weights, open_weights
from undertow.errors import AdapterMismatch, DamagedWeights, KeyMismatch, UnknownCheckpoint
from undertow.unet.config import UNetConfig
from undertow.unet.unet import UNet


def read_image_prompt(
    source: str | Path, base: UNet, *, index: int | None = None, allow_pickle: bool = True
) -> ImagePrompt:
    """The IP-Adapter at `source` for one U-Net, in its type and on its device, in evaluation mode.

    source: a safetensors file, a pickle of the authors' (.bin), a folder with one of them, a U-Net's folder that
    diffusers saved with adapters, or a file on the Hub. index: which of several in such a folder. allow_pickle: read a
    pickle's tensors in a process of its own, which can create nothing but tensors.
    Errors: `AdapterMismatch` for another family, `UnsupportedModel` for FaceID and its kin, `KeyMismatch`,
    `DamagedWeights`, `CorruptFile`, `UnknownCheckpoint`, `UnsafeFile`, `InvalidInput` for the index.
    """
    path = _file_in(locate(source))
    with _opened(path, allow_pickle=allow_pickle) as weights:
        require_image_prompt(weights)
        names = read_names(weights, index)
        if names.unknown:
            raise KeyMismatch(path, unexpected=names.unknown)
        _require_text(path, base.config)
        require_fit(path, names, base.config)
        projection = projection_of(path, names, base.config, weights.metadata)
        prompt = build_on_meta(lambda: ImagePrompt(base.config, projection))
        tensors = _read(path, weights, names, base)
    prompt.load_state_dict(tensors, assign=True)
    prompt.path, prompt.content_hash = path, _hash(path, index)
    return prompt.eval()


def _read(path: Path, weights: Weights, names: Names, base: UNet) -> dict[str, Tensor]:
    """Every tensor by our name, looked at, converted and copied one after the other."""
    numbers: dict[int | str, int] = {site: number for number, site in site_numbers(base.config).items()}
    sources = {f"image_proj.{name}": pieces for name, pieces in names.projection.items()}
    for (layer, leaf), name in names.pairs.items():
        number = numbers[layer] if isinstance(layer, str) else layer
        sources[f"ip_adapter.{number}.{leaf}.weight"] = (name,)
    tensors: dict[str, Tensor] = {}
    damaged: list[Finding] = []
    with weights.reader() as read:
        for ours, pieces in sources.items():
            stored = [read(piece) for piece in pieces]
            findings = [examine(name, tensor, target=base.dtype) for name, tensor in zip(pieces, stored, strict=True)]
            damaged += [
                one for one in findings if one is not None and one.verdict in ("not finite", "overflows float16")
            ]
            tensors[ours] = torch.cat(stored).to(device=base.device, dtype=base.dtype, copy=True)
    if damaged:
        shown = "; ".join(map(str, damaged[:3])) + (f"; and {len(damaged) - 3} more" if len(damaged) > 3 else "")
        bad = [finding.name for finding in damaged]
        raise DamagedWeights(path, bad, f"values that are not numbers: {shown}", "download or train it again")
    return tensors


def _require_text(path: Path, config: UNetConfig) -> None:
    if config.context_dim is None:
        raise AdapterMismatch(
            path, "this model has no cross-attention, beside which an image prompt acts", "use a model that reads text"
        )


@contextmanager
def _opened(path: Path, *, allow_pickle: bool) -> Generator[Weights]:
    if path.is_dir():
        yield folder_weights(path, variant_order(None))
    elif allow_pickle and is_pickle(path):
        with as_safetensors(path) as converted:
            yield open_weights(converted)
    else:
        yield open_weights(path)


def _file_in(place: Path) -> Path:
    """The adapter's file in a folder, or the folder of a U-Net with adapters."""
    if not place.is_dir():
        return place
    for unet in (place, place / "unet"):
        if (unet / "config.json").is_file():
            return unet
    for ending in ("*.safetensors", "*.bin"):
        files = sorted(place.glob(ending))
        if len(files) == 1:
            return files[0]
        if files:
            names = ", ".join(file.name for file in files[:3])
            raise UnknownCheckpoint(place, f"a folder with {len(files)} files ({names})", "give the file itself")
    raise UnknownCheckpoint(place, "a folder without an IP-Adapter's file", "give a .safetensors or .bin file")


def _hash(path: Path, index: int | None) -> str:
    """SHA-256 of everything that is read, and of which adapter in it."""
    digest = hashlib.sha256(b"" if index is None else str(index).encode())
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    for one in files:
        with one.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    return digest.hexdigest()
