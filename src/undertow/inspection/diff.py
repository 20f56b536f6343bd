"""Two runs that should agree: the first module that departs, by how much, and how that grows.

Run A draws. In each of its forwards B's network receives A's latents, timestep and conditioning and is answered with
A's prediction, so that the departures of one step are not those of the steps before it. Within a forward B computes
twice: by itself, and with every module given what A's received.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from undertow.adapters.adapter import Adapter
from undertow.doors import checked, nearest
from undertow.engine.request import GenerationRequest
from undertow.errors import InvalidInput
from undertow.inspection.departure import PICTURE, Comparison, Place, require_tolerance, usual_tolerance
from undertow.inspection.departure_findings import Caught, Findings
from undertow.inspection.departure_pair import Pair, is_compiled
from undertow.inspection.departure_runs import Drawing, described, text_prefix
from undertow.inspection.departure_tape import modules_of
from undertow.inspection.diffusers_tree import DiffusersTree

EVERYTHING = ("*",)


@checked
def compare_runs(
    a: Drawing,
    b: Drawing | DiffusersTree,
    request: GenerationRequest,
    *,
    adapters_b: Sequence[Adapter] | None = None,
    tolerance: float | None = None,
    modules: Sequence[str] = EVERYTHING,
    names: tuple[str, str] = ("A", "B"),
    alone: bool = True,
) -> Comparison:
    """How two runs of one request differ: of two loaded models (`UNetService`), which may be one and the same, or of a
    model and diffusers' U-Net over the same folder.

    adapters_b: those of B; `None` for the request's. tolerance: of one module's relative error; `None` chooses one by
    the types, see `usual_tolerance`. modules: patterns of names, such as "unet.mid_block*". names: for the verdict.
    alone: B also draws by itself, which takes another run. Nothing else may draw with the models meanwhile. Of several
    pictures the first is compared. Memory: what all modules of one forward of one row receive and return, within half
    of what is free. Errors: `InvalidInput` for a tolerance below 0 or not finite, patterns without a module and models
    of unlike architecture; `OutOfMemory`; what drawing A raises.

        found = compare_runs(service, other, GenerationRequest(prompt="red apple", steps=4))
        print(found.verdict())
    """
    return compare(
        a, b, request, adapters_b=adapters_b, tolerance=tolerance, modules=modules, names=names, alone=alone
    )[0]


@torch.inference_mode()
def compare(
    a: Drawing,
    b: Drawing | DiffusersTree,
    request: GenerationRequest,
    *,
    adapters_b: Sequence[Adapter] | None = None,
    tolerance: float | None = None,
    modules: Sequence[str] = EVERYTHING,
    names: tuple[str, str] = ("A", "B"),
    alone: bool = True,
) -> tuple[Comparison, Caught | None]:
    """`compare_runs`, with the tensors of the first departure."""
    require_tolerance(tolerance)
    request = replace(request, count=1)
    network = b.network if isinstance(b, DiffusersTree) else b.model.require_unet()
    for pattern in modules:
        _require_match(a, pattern)
    _require_alike(a.model.require_unet(), network)
    dtypes = [a.model.require_unet().dtype, next(network.parameters()).dtype]
    same_way = not isinstance(b, DiffusersTree) and described(a) == described(b)
    chosen = usual_tolerance(dtypes, same_way=same_way) if tolerance is None else tolerance
    findings = Findings(tolerance=chosen)
    pair = Pair(a=a, b=b, request=request, modules=modules, findings=findings)
    if isinstance(b, DiffusersTree):
        pair.beside_a_tree(b)
        picture = None
        findings.notes.append("of diffusers the U-Net is compared alone: it draws no picture here")
    else:
        theirs = request if adapters_b is None else replace(request, adapters=tuple(adapters_b))
        picture = pair.in_turns(b, theirs)
        findings.take_whole(Place(stage=PICTURE), "vae", picture)
        if alone:
            pair.alone(b, theirs)
    if is_compiled(a) or (not isinstance(b, DiffusersTree) and is_compiled(b)):
        findings.notes.append(
            "of a compiled or converted network the whole is compared: nothing sees the modules inside it"
        )
    comparison = Comparison(
        a=names[0],
        b=names[1],
        tolerance=chosen,
        text=findings.text,
        forwards=tuple(findings.forwards),
        picture=picture,
        free=tuple(pair.free),
        first=findings.first,
        notes=tuple(findings.notes),
    )
    if comparison.modules == 0:
        raise InvalidInput("modules", ", ".join(modules), "some that are called", "such as 'unet.mid_block*'")
    return comparison, findings.caught


def _require_match(a: Drawing, pattern: str) -> None:
    """Errors: `InvalidInput` for a pattern that matches no module, with names that are near."""
    encoders = () if a.model.text is None else a.model.text.encoders
    networks: dict[str, nn.Module] = {"unet": a.model.require_unet()}
    networks |= {text_prefix(index): one for index, one in enumerate(encoders)}
    if any(modules_of(network, prefix, [pattern]) for prefix, network in networks.items()):
        return
    known = [name for prefix, network in networks.items() for name in modules_of(network, prefix, EVERYTHING)]
    raise InvalidInput("modules", repr(pattern), "a pattern of names of modules", nearest(pattern, known))


def _require_alike(a: nn.Module, b: nn.Module) -> None:
    """Errors: `InvalidInput` for networks with other weights."""
    mine, its = ({name: weight.numel() for name, weight in one.named_parameters()} for one in (a, b))
    other = sorted(name for name in mine.keys() | its.keys() if mine.get(name) != its.get(name))
    if other:
        raise InvalidInput(
            "B", f"of another architecture ({len(other)} weights differ in size, such as {other[0]})", "one like A"
        )
