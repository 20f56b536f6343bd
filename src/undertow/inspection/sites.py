"""Which modules patterns name: of the U-Net, of ControlNets beside it, of the text encoders and the autoencoder."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from undertow.checkpoints.read.model import LoadedModel
from undertow.doors import nearest
from undertow.engine.probing import TEXT_ENCODERS, named_networks
from undertow.engine.rows import Row
from undertow.errors import InvalidInput
from undertow.vae.autoencoder import AutoencoderKL
from undertow.vae.program import decode_program
from undertow.vae.steps import Add, Attend, Convolve

CONTROL, VAE = "controlnet", "vae"

Site = tuple[str, nn.Module, list[Row]]
"""A module's whole name, the module, and the rows of its batch."""


def joined(prefix: str, name: str) -> str:
    """The name of a module of a network whose modules' names begin with `prefix`."""
    return f"{prefix}.{name}" if prefix and name else prefix or name


def of_part(patterns: Sequence[str], part: str) -> tuple[str, ...]:
    """The patterns that concern a part of the model: "controlnet", a text encoder, "vae", or "", the U-Net, whose
    modules are named without one."""
    heads = (CONTROL, VAE, *TEXT_ENCODERS)
    return tuple(one for one in patterns if (head if (head := one.partition(".")[0]) in heads else "") == part)


def matching(network: nn.Module, patterns: Sequence[str], prefix: str = "") -> list[str]:
    """Names of the modules that patterns match, in their order in the network. Errors: `InvalidInput` for a pattern
    that matches none."""
    return _matched([joined(prefix, name) for name, _ in network.named_modules()], patterns)


def sites_in(rows: Sequence[Row], patterns: Sequence[str]) -> list[Site]:
    """The modules that a forward of these rows calls and patterns name. Errors: `InvalidInput` for one that names none
    of the U-Net, or none of a ControlNet that it names."""
    found: list[Site] = []
    for prefix, network, own in named_networks(rows):
        chosen = of_part(patterns, CONTROL if prefix else "")
        if prefix:
            title = prefix.removeprefix(f"{CONTROL}.")
            chosen = [one for one in chosen if one == CONTROL or _names_title(one.removeprefix(f"{CONTROL}."), title)]
        found += [(name, module, own) for name, module in named(network, chosen, prefix)]
    return found


def concerns_forward(patterns: Sequence[str], rows: Sequence[Row]) -> bool:
    """Whether any of them names modules that a forward of these rows calls."""
    return bool(of_part(patterns, "")) or (
        bool(of_part(patterns, CONTROL))
        and any(row.adapters is not None and row.adapters.named_networks for row in rows)
    )


def named(network: nn.Module, patterns: Sequence[str], part: str) -> list[tuple[str, nn.Module]]:
    """The modules of a part that patterns name, by their whole names. Errors: those of `matching`."""
    return [
        (name, network.get_submodule(name.removeprefix(part).removeprefix(".") if part else name))
        for name in matching(network, patterns, part)
    ]


def _names_title(pattern: str, title: str) -> bool:
    """Whether a pattern, which begins with that of a ControlNet's title, means this one. Titles may have dots."""
    return fnmatchcase(title, ".".join(pattern.split(".")[: title.count(".") + 1])) or pattern.startswith("*")


def decoder_names(vae: AutoencoderKL) -> list[str]:
    """Names of what is seen of the autoencoder, in order: what its convolutions, attentions and sums give while it
    decodes."""
    steps = decode_program(vae, (8, 8), torch.float32).steps
    return list(dict.fromkeys(f"{VAE}.{step.name}" for step in steps if isinstance(step, (Convolve, Attend, Add))))


def require_names(model: LoadedModel, patterns: Sequence[str]) -> None:
    """Errors: `InvalidInput` for a pattern that matches nothing in the model, with names that are near. Those of
    ControlNets are looked for when one acts."""
    text = () if model.text is None else model.text.encoders
    names: Mapping[str, Sequence[str]] = {
        "": [name for name, _ in model.require_unet().named_modules()],
        VAE: [] if model.vae is None else decoder_names(model.vae),
        **{part: [] for part in TEXT_ENCODERS},
        **{
            part: [joined(part, name) for name, _ in encoder.named_modules()]
            for part, encoder in zip(TEXT_ENCODERS, text, strict=False)
        },
    }
    for part, known in names.items():
        chosen = of_part(patterns, part)
        if chosen and not known:
            raise InvalidInput("pattern", repr(chosen[0]), "one of a part that this model has", f"it has no {part}")
        _matched(known, chosen)


def _matched(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InvalidInput("pattern", repr(pattern), "one that matches a module", nearest(pattern, names))
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
