"""Writing IP-Adapters in the authors' flat form, which diffusers' `load_ip_adapter` and other programs read."""

from collections.abc import Mapping
from pathlib import Path

import torch

from undertow.adapters.image_prompt.prompt import ImagePrompt
from undertow.checkpoints.files.atomic import write_tensors
from undertow.errors import InvalidInput


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
