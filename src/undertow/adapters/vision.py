"""Image encoders for IP-Adapters: found beside the adapter or in the model's folder, each read once."""

from pathlib import Path

import torch

from undertow.adapters.adapter import Adapter
from undertow.adapters.image_prompt.encoder import load_image_encoder
from undertow.adapters.image_prompt.pairing import encoder_for
from undertow.adapters.image_prompt.prompt import ImagePrompt
from undertow.encoders.image import ImageEncoder
from undertow.errors import AdapterMismatch, MissingComponent
from undertow.processor import computes

FOLDER = "image_encoder"


class Encoders:
    """device: where they work. folder: of the model, which may hold one."""

    def __init__(self, device: torch.device, folder: Path | None = None):
        self._device = device
        self._folder = folder
        self._read: dict[str, ImageEncoder] = {}

    def for_adapter(self, adapter: Adapter, prompt: ImagePrompt) -> ImageEncoder:
        """The one that the adapter names; else in `image_encoder` beside its file or one folder up, as the authors
        publish it; else the model's; the first that fits. Errors: `MissingComponent`; `AdapterMismatch` when none fits;
        those of `load_image_encoder`."""
        if adapter.encoder is not None:
            encoder = self._at(adapter.encoder)
            prompt.require_encoder(encoder)
            return encoder
        place = Path(adapter.source)
        place = place if place.exists() else prompt.path  # on the Hub, where it was downloaded to
        beside = place if place.is_dir() else place.parent
        # Also the authors' other folder: SDXL's adapters for ViT-H lie beside ViT-bigG's encoder.
        places = [beside / FOLDER, beside.parent / FOLDER, beside.parent / "models" / FOLDER]
        places += [] if self._folder is None else [self._folder / FOLDER]
        refusal: AdapterMismatch | None = None
        for place in filter(Path.is_dir, places):
            encoder = self._at(place)
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
            encoder = load_image_encoder(source).to(self._device)
            self._read[key] = encoder if computes(encoder.dtype, self._device) else encoder.float()
        return self._read[key]
