"""Training a LoRA further: an existing file gives new updates their first values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from undertow.adapters.lora.additive import LowRank
from undertow.adapters.lora.lora_file import Lora, read_lora
from undertow.adapters.lora.targets import NetworkName, Targets
from undertow.checkpoints.read.model import LoadedModel
from undertow.errors import InvalidInput
from undertow.training.low_rank import TrainableUpdates


@dataclass(frozen=True, kw_only=True, eq=False)
class LoraStart:
    """The low-rank updates of an existing LoRA. content_hash: of its file. layers: by network and by the name of the
    layer, for text encoders without `text_model.`."""

    path: Path
    content_hash: str
    layers: Mapping[NetworkName, Mapping[str, LowRank]]

    @property
    def rank(self) -> int:
        """The largest of its layers' ranks."""
        return max(len(update.down) for layers in self.layers.values() for update in layers.values())

    @property
    def scale(self) -> float | None:
        """alpha / rank, if it is the same in all layers."""
        scales = {update.scale for layers in self.layers.values() for update in layers.values()}
        return scales.pop() if len(scales) == 1 else None

    @property
    def sites(self) -> tuple[str, ...]:
        """The layers of the U-Net that it changes."""
        return tuple(self.layers.get("unet", ()))

    @property
    def has_text(self) -> bool:
        """Whether it changes text encoders."""
        return bool(self.layers.keys() - {"unet"})

    def settings(self, *, rank: int | None, alpha: float | None, sites: Sequence[str] | None) -> dict[str, Any]:
        """Fields of `LoraSettings`: as given, or else the rank, scale and layers of this LoRA."""
        rank = self.rank if rank is None else rank
        scale = 1.0 if self.scale is None else self.scale
        return {
            "rank": rank,
            "alpha": rank * scale if alpha is None else alpha,
            "sites": tuple(sites) if sites else self.sites,
        }

    def fill(self, network: NetworkName, updates: TrainableUpdates, gain: float) -> None:
        """Gives new updates the values of the file, so that they change the network as the file does. gain: the scale
        of the new updates. Errors: `InvalidInput` for layers that are not trained and for a larger rank than theirs."""
        known = dict(updates.items())
        for name, update in self.layers.get(network, {}).items():
            if name not in known:
                remedy = "leave out --sites to train the layers of the file"
                raise InvalidInput("sites", f"without {name}", f"all layers that {self.path} changes", remedy)
            rank, trained = len(update.down), known[name]
            if rank > trained.down.shape[1]:
                raise InvalidInput("rank", trained.down.shape[1], f"at least {rank}, the rank of {self.path}")
            with torch.no_grad():
                trained.down[0, :rank] = update.down.flatten(1).to(trained.down)
                trained.up[0, :, :rank] = update.up.flatten(1).to(trained.up) * (update.scale / gain)


def read_start(path: Path, model: LoadedModel) -> LoraStart:
    """Reads a LoRA of this model to be trained further. Errors: those of `read_lora`; `InvalidInput` for other kinds of
    adapters than pairs of low-rank matrices."""
    found = read_lora(path, Targets.of(model.require_unet(), model.require_text().encoders))
    layers: dict[NetworkName, dict[str, LowRank]] = {}
    for network, updates in found.updates.items():
        for name, update in updates.items():
            layers.setdefault(network, {})[name.removeprefix("text_model.")] = _plain(found, name, update)
    return LoraStart(path=found.path, content_hash=found.content_hash, layers=layers)


def _plain(found: Lora, name: str, update: object) -> LowRank:
    if isinstance(update, LowRank) and update.mid is None and update.bias_change is None:
        return update
    raise InvalidInput(
        "the LoRA to start from",
        f"{found.path}, where {name} is no plain pair of matrices",
        "a LoRA of such pairs alone",
        "DoRA, LoHa, LoKr, Tucker forms and changes of biases are not trained further",
    )
