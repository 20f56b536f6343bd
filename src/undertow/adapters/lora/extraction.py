"""A LoRA from two models: the low-rank updates that come nearest to what tuning changed."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from undertow.adapters.lora.additive import LowRank
from undertow.adapters.lora.write import Component, TrainedLora
from undertow.checkpoints.read.model import LoadedModel
from undertow.errors import InvalidInput
from undertow.lookup import counted
from undertow.state_dicts import Differences, compare_shapes, shapes_of


@dataclass(frozen=True, kw_only=True, eq=False)
class ExtractedLora:
    """What a LoRA of one rank can hold of a difference.

    updates: by component and layer, as their networks name them, of the rank that was asked for or of all that a layer
    can have. kept: the share of the squared change of
    these layers' weights that the updates make. left_out: tensors that changed and that no LoRA holds: biases, norms,
    embeddings.
    """

    updates: Mapping[Component, Mapping[str, LowRank]]
    kept: float
    left_out: tuple[str, ...]

    @property
    def ranks(self) -> tuple[int, ...]:
        """Of every layer."""
        return tuple(len(update.down) for layers in self.updates.values() for update in layers.values())


Networks = Mapping[Component, nn.Module]


@torch.no_grad()
def extract_lora(base: Networks, tuned: Networks, rank: int, *, beside: Collection[str] = ()) -> ExtractedLora:
    """The best updates of this rank for every linear layer and convolution that differs, by squared error (Eckart and
    Young, doi:10.1007/BF02288367), as sd-scripts' `extract_lora_from_models.py` and ComfyUI find them. A layer of fewer
    channels than `rank` is held exactly, by a rank of as many.

    base, tuned: the networks of two models, with the same components. beside: what else differs, in sentences, for the
    error where nothing is left for a LoRA. Errors: `InvalidInput` for a rank below 1, for networks of different
    architectures, and where no layer differs that a LoRA can change.
    """
    if rank < 1:
        raise InvalidInput("rank", rank, "at least 1")
    updates: dict[Component, dict[str, LowRank]] = {}
    changed, missed, left_out = 0.0, 0.0, list[str]()
    _require_same_networks(base, tuned)
    for component, before in base.items():
        found = dict[str, LowRank]()
        for name, difference in _differences(before, tuned[component]):
            layer = before.get_submodule(name.rpartition(".")[0])
            if not (name.endswith(".weight") and isinstance(layer, nn.Linear | nn.Conv2d)):
                left_out.append(f"{component}.{name}")
                continue
            update = nearest(difference, rank)
            found[name.removesuffix(".weight")] = update
            changed += float(difference.square().sum())
            missed += float((difference - update.matrix().double().view_as(difference)).square().sum())
        if found:
            updates[component] = found
    if not updates:
        raise _nothing_to_hold(left_out, beside)
    return ExtractedLora(updates=updates, kept=1 - missed / changed, left_out=tuple(left_out))


def nearest(difference: Tensor, rank: int) -> LowRank:
    """The update of this rank, or of the largest that the shape can have, that comes nearest to the difference of a
    linear layer's weight or a convolution's.

    Its left singular vectors are the eigenvectors of D Dᵀ, or its right ones those of Dᵀ D: the smaller of the two, so
    that a convolution of 1280 channels takes a fraction of a second. Both factors are equally large.
    """
    flat = difference.flatten(1)
    outputs, inputs = flat.shape
    tall = outputs > inputs
    values, vectors = torch.linalg.eigh(flat.T @ flat if tall else flat @ flat.T)
    held = min(rank, len(values))
    # The largest last.
    vectors, sizes = vectors[:, -held:].flip(-1), values[-held:].flip(-1).clamp(min=0).pow(0.25)
    even = torch.where(sizes > 0, sizes, 1)
    if tall:
        down, up = vectors.T * sizes[:, None], flat @ vectors / even
    else:
        down, up = vectors.T @ flat / even[:, None], vectors * sizes
    kernel = difference.shape[2:]
    return LowRank(
        down=down.float().reshape(held, -1, *kernel),
        up=up.float().reshape(outputs, held, *(1 for _ in kernel)),
        scale=1.0,
    )


def left_out_in_words(names: Sequence[str]) -> str:
    """Tensors that changed and that no LoRA holds, counted, with the first of them."""
    verbs = "changed and fits" if len(names) == 1 else "changed and fit"
    return f"{counted(len(names), 'tensor')} {verbs} into no LoRA, such as {names[0]}"


def as_lora(extracted: ExtractedLora, base: LoadedModel, tuned: LoadedModel, title: str) -> TrainedLora:
    """The record that `write_lora` writes, with what it was made from."""
    found = base.report.identification
    prefixes = {"unet": ""}
    return TrainedLora(
        updates={
            component: {prefixes.get(component, "text_model.") + name: update for name, update in layers.items()}
            for component, layers in extracted.updates.items()
        },
        title=title,
        family=base.family,
        variant=found.variant,
        prediction=tuned.report.identification.prediction.value,
        config=base.require_unet().config,
        notes={"ss_sd_model_name": base.path.name, "ss_training_comment": f"extracted from {tuned.path.name}"},
    )


def networks_of(model: LoadedModel, *, text: bool = True) -> dict[Component, nn.Module]:
    """The networks of a text-to-image model that a LoRA may change. text: its encoders are among them. Errors:
    `MissingComponent`, also for a model that draws no latents."""
    networks: dict[Component, nn.Module] = {"unet": model.require_unet()}
    if not text and not model.is_of_classes:
        return networks
    for encoder in model.require_text().encoders:
        networks["text_encoder_2" if encoder.kind == "openclip_g" else "text_encoder"] = encoder.clip
    return networks


def _differences(before: nn.Module, after: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter that differs, in float64."""
    others = dict(after.named_parameters())
    for name, parameter in before.named_parameters():
        difference = others[name].detach().double() - parameter.detach().double()
        if difference.any():
            yield name, difference


def _nothing_to_hold(left_out: Sequence[str], beside: Collection[str]) -> InvalidInput:
    """Why there is no LoRA: nothing changed, or only what fits into none."""
    found = [*([left_out_in_words(left_out)] if left_out else []), *beside]
    if not found:
        return InvalidInput("tuned", "equal to base in every layer", "a model that was tuned from base")
    value, expected = "equal to base in all that a LoRA holds", "a model whose linear layers or convolutions were tuned"
    return InvalidInput("tuned", value, expected, "; ".join(found))


def _require_same_networks(base: Networks, tuned: Networks) -> None:
    if base.keys() != tuned.keys():
        raise InvalidInput("tuned", f"a model with {', '.join(tuned)}", f"one with {', '.join(base)}, as base")
    for component, before in base.items():
        differences = compare_shapes(shapes_of(before.state_dict()), shapes_of(tuned[component].state_dict()))
        if differences != Differences():
            some = next(iter((*differences.reshaped, *differences.missing, *differences.unexpected)))
            expected = "of the same architecture as base: only weights may differ"
            raise InvalidInput("tuned", f"a model whose {component} has other layers ({some})", expected)
