"""IP-Adapters in files: safetensors, the authors' pickles, U-Nets that diffusers saved with an adapter in them; written
in the authors' flat form, which diffusers' `load_ip_adapter` and other programs read."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from undertow.adapters.files.opened import OpenedAdapter, open_adapter
from undertow.adapters.image_prompt.fitting import projection_of, require_fit
from undertow.adapters.image_prompt.names import Names, read_image_prompt_names, require_image_prompt
from undertow.adapters.image_prompt.prompt import ImagePrompt
from undertow.adapters.image_prompt.sites import site_numbers
from undertow.checkpoints.files.locate import locate
from undertow.checkpoints.files.weights import Weights, write_tensors
from undertow.checkpoints.health import Finding, examine
from undertow.checkpoints.read.loading import build_on_meta
from undertow.errors import AdapterMismatch, DamagedWeights, InvalidInput, KeyMismatch
from undertow.unet.config import UNetConfig
from undertow.unet.unet import UNet


def read_image_prompt(source: str | Path, base: UNet, *, index: int | None = None) -> ImagePrompt:
    """Opens `source` and reads the IP-Adapter in it for one U-Net; see `image_prompt_from`.

    source: a safetensors file, a pickle of the authors' (.bin), a folder with one of them, a U-Net's folder that
    diffusers saved with adapters, or a file on the Hub. Errors: also those of `open_adapter`.
    """
    with open_adapter(_place(source)) as opened:
        return image_prompt_from(opened, base, index=index)


def image_prompt_from(opened: OpenedAdapter, base: UNet, *, index: int | None = None) -> ImagePrompt:
    """The IP-Adapter in an opened file, in the U-Net's type and on its device, frozen. index: which of several.

    Errors: `AdapterMismatch` for another family, `UnsupportedModel` for FaceID and its kin, `KeyMismatch`,
    `DamagedWeights`, `CorruptFile`, `UnknownCheckpoint`, `InvalidInput` for the index.
    """
    path, weights = opened.path, opened.weights
    require_image_prompt(path, weights)
    names = read_image_prompt_names(path, weights.tensors, index)
    if names.unknown:
        raise KeyMismatch(path, unexpected=names.unknown)
    _require_text(path, base.config)
    require_fit(path, names, base.config)
    projection = projection_of(path, names, base.config, weights.metadata)
    prompt = build_on_meta(lambda: ImagePrompt(base.config, projection))
    tensors = _read(path, weights, names, base)
    prompt.path = path
    prompt.content_hash = opened.content_hash() + ("" if index is None else f"-{index}")
    prompt.load_state_dict(tensors, assign=True)
    return prompt.requires_grad_(False).eval()


def _read(path: Path, weights: Weights, names: Names, base: UNet) -> dict[str, Tensor]:
    """Every tensor under our name; each is checked, converted and copied before the next is read."""
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


def _place(source: str | Path) -> Path:
    """The source, or the U-Net in a pipeline's folder, which diffusers saves with the adapters in it."""
    place = locate(source)
    unet = place / "unet"
    return unet if (unet / "config.json").is_file() else place


def write_image_prompt(
    prompt: ImagePrompt,
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float16,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Writes a safetensors file, whole or not at all. notes: more entries for the header.

    diffusers looks for the encoder in a folder `image_encoder` beside the file; it reads "base" with 4 tokens, "plus"
    with a resampler of 4 layers, and "full". Errors: `InvalidInput` for values that are not finite in `dtype`.
    """
    stored = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in prompt.state_dict().items()}
    for name, tensor in stored.items():
        if not tensor.isfinite().all():
            raise InvalidInput("prompt", f"not finite in {dtype} at {name}", "finite numbers", "train at a lower rate")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"format": "pt", "tokens_per_image": str(prompt.tokens_per_image), **({} if notes is None else notes)}
    write_tensors(stored, path, header)
