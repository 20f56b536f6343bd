"""A hundred edits of one layer each, planted in copies of tiny models, and whether `undertow diff` names the layer.

    python -m benchmarks.planted_edits [--out docs/results/planted-edits.md]

Models shaped like SD1, SD2 and SDXL with random weights; the edit is drawn from a seed, and the verdict's module is
compared with that of the edit. One thread, about three minutes.
"""

import argparse
import random
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import undertow
from tests.services import fresh_service, pipeline_folder
from undertow import GenerationRequest, UNetService
from undertow.inspection.diff import compare_runs
from undertow.inspection.diffusers_tree import load_diffusers_unet
from undertow.nn.attention import AttentionProjections
from undertow.nn.feedforward import GEGLU
from undertow.nn.resnet import ResBlock

FAMILIES = ("sd1", "sd2", "sdxl")
COUNT = 100
REQUEST = GenerationRequest(prompt="red apple", steps=1, seed=3, guidance_scale=1.0)

Undo = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What is done to one module of a kind. possible: whether it changes anything there. do: does it; returns what
    takes it back."""

    name: str
    kinds: tuple[type[nn.Module], ...]
    do: Callable[[nn.Module], Undo]
    possible: Callable[[nn.Module], bool] = lambda module: True


@contextmanager
def planted(edit: Edit, module: nn.Module) -> Generator[None]:
    undo = edit.do(module)
    try:
        yield
    finally:
        undo()


def on(parameter: str, change: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], Undo]:
    """A change of one of a module's tensors."""

    def do(module: nn.Module) -> Undo:
        data = module.get_parameter(parameter).data
        before = data.clone()
        data.copy_(change(before))

        def undo() -> None:
            data.copy_(before)

        return undo

    return do


def setting(name: str, change: Callable[[float], float]) -> Callable[[nn.Module], Undo]:
    def do(module: nn.Module) -> Undo:
        before = getattr(module, name)
        setattr(module, name, type(before)(change(before)))
        return lambda: setattr(module, name, before)

    return do


def code(forward: Callable[..., Tensor]) -> Callable[[nn.Module], Undo]:
    """Another forward. `nn.Module` finds it in the instance before it does in the class."""

    def do(module: nn.Module) -> Undo:
        module.forward = lambda *given, **named: forward(module, *given, **named)
        return lambda: delattr(module, "forward")

    return do


def relu_block(block: ResBlock, x: Tensor, embedding: Tensor, weights: object = None) -> Tensor:
    """ReLU in place of the first SiLU."""
    hidden = block.conv1(F.relu(block.norm1(x)), weights)
    assert block.time_emb_proj is not None
    hidden = hidden + block.time_emb_proj(embedding, weights)[:, :, None, None]
    hidden = block.conv2(F.silu(block.norm2(hidden)), weights)
    return hidden + (x if block.conv_shortcut is None else block.conv_shortcut(x, weights))


def tanh_gate(gate: GEGLU, x: Tensor, weights: object = None) -> Tensor:
    """The approximate GELU, whose values differ by 1e-3 at most."""
    value, half = gate.proj(x, weights).chunk(2, dim=-1)
    return value * F.gelu(half, approximate="tanh")


def swapped_rows(weight: Tensor) -> Tensor:
    """The first two heads of eight channels in each other's place."""
    return torch.cat([weight[8:16], weight[:8], weight[16:]])


WEIGHTED, PROJECTIONS = (nn.Linear, nn.Conv2d), (nn.Linear,)
NORMS = (nn.GroupNorm, nn.LayerNorm)


def has_bias(module: nn.Module) -> bool:
    return getattr(module, "bias", None) is not None


def nudged(weight: Tensor) -> Tensor:
    """The largest entry 10 % larger."""
    flat = weight.flatten().clone()
    flat[flat.abs().argmax()] *= 1.1
    return flat.view(weight.shape)


EDITS = (
    Edit(name="weight scaled by 1.01", kinds=WEIGHTED, do=on("weight", lambda weight: weight * 1.01)),
    Edit(name="largest entry of a weight 10 % larger", kinds=WEIGHTED, do=on("weight", nudged)),
    Edit(name="weight rounded to bfloat16", kinds=WEIGHTED, do=on("weight", lambda weight: weight.bfloat16().float())),
    Edit(name="bias zeroed", kinds=WEIGHTED, do=on("bias", torch.zeros_like), possible=has_bias),
    Edit(name="two heads swapped", kinds=PROJECTIONS, do=on("weight", swapped_rows),
         possible=lambda module: len(module.get_parameter("weight")) >= 16),
    Edit(name="half of the heads", kinds=(AttentionProjections,), do=setting("heads", lambda heads: heads // 2),
         possible=lambda module: isinstance(module, AttentionProjections) and module.heads > 1),
    Edit(name="a norm's epsilon times 100", kinds=NORMS, do=setting("eps", lambda eps: eps * 100)),
    Edit(name="a norm's weight scaled by 1.01", kinds=NORMS, do=on("weight", lambda weight: weight * 1.01)),
    Edit(name="half of a norm's groups", kinds=(nn.GroupNorm,), do=setting("num_groups", lambda groups: groups // 2),
         possible=lambda module: isinstance(module, nn.GroupNorm) and module.num_groups > 1),
    Edit(name="ReLU in place of SiLU", kinds=(ResBlock,), do=code(relu_block)),
    Edit(name="GELU approximated by tanh", kinds=(GEGLU,), do=code(tanh_gate)),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Outcome:
    family: str
    edit: str
    module: str
    found: str
    error: float

    @property
    def right(self) -> bool:
        return self.found == f"unet.{self.module}"


def plant_all(count: int) -> list[Outcome]:
    """Families and edits take turns; the module is drawn. Modules that run in no forward are not there to be edited."""
    rng, outcomes = random.Random(0), list[Outcome]()
    pairs = {family: (fresh_service(family), fresh_service(family)) for family in FAMILIES}
    for number in range(count):
        family, edit = FAMILIES[number % len(FAMILIES)], EDITS[number % len(EDITS)]
        a, b = pairs[family]
        able = [name for name, one in b.unet.named_modules() if isinstance(one, edit.kinds) and edit.possible(one)]
        module = rng.choice(able)
        with planted(edit, b.unet.get_submodule(module)):
            first = compare_runs(a, b, REQUEST, alone=False).first
        found, error = ("", 0.0) if first is None else (first.module, first.own.error)
        outcomes.append(Outcome(family=family, edit=edit.name, module=module, found=found, error=error))
        if not outcomes[-1].right:
            print(f"{family}: {edit.name} at {module}: found {found or 'nothing'}")
    return outcomes


def healthy(family: str) -> list[tuple[str, str, float, float]]:
    """Pairs that should agree: what B is, the verdict, the largest error and the tolerance."""
    a, folder = fresh_service(family), pipeline_folder(family)

    def load(**options: object) -> UNetService:
        return undertow.load(folder, **{"dtype": torch.float32, **options})  # pyright: ignore[reportArgumentType]

    others = {
        "loaded again": load(),
        "attention written out (`math`)": load(attention="math"),
        "diffusers": load_diffusers_unet(folder),
        "float16": load(dtype=torch.float16),
        "bfloat16": load(dtype=torch.bfloat16),
    }
    rows = []
    for name, b in others.items():
        found = compare_runs(a, b, REQUEST, alone=False)
        rows.append((name, "agree" if found.agree else "depart", found.largest, found.tolerance))
    return rows


PAGE = """# Planted edits

Whether `undertow diff` names the layer that differs: {count} edits of one layer each, in copies of tiny models with
random weights that are shaped like SD1, SD2 and SDXL, one forward each,
in float32 ({about}). The page is written by `make planted-edits`.

**{right} of {count}** were named, by the module that was edited and no other.

| edit | planted | named | smallest error |
|---|---:|---:|---:|
{edits}

A scale of 1.01 shows as an error of 0.01; the smallest errors are where an edit hardly changes what a layer computes.

## Healthy pairs

Pairs that should agree, and do: the largest error of any module by itself, beside the tolerance. float32 is compared
with each; where the processor imitates bfloat16, a model asked for in it is loaded in float32.

| model | B | verdict | largest error | tolerance |
|---|---|---|---:|---:|
{healthy}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--count", type=int, default=COUNT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    outcomes = plant_all(given.count)
    edits, named = Counter(one.edit for one in outcomes), Counter(one.edit for one in outcomes if one.right)
    smallest = {name: min(one.error for one in outcomes if one.edit == name) for name in edits}
    page = PAGE.format(
        count=len(outcomes),
        right=sum(named.values()),
        about=f"{time.perf_counter() - started:.0f} s of one thread",
        edits="\n".join(f"| {name} | {edits[name]} | {named[name]} | {smallest[name]:.1e} |" for name in edits),
        healthy="\n".join(
            f"| {family} | {name} | {verdict} | {largest:.1e} | {tolerance:.1e} |"
            for family in FAMILIES
            for name, verdict, largest, tolerance in healthy(family)
        ),
    )
    print(page)
    if given.out is not None:
        given.out.write_text(page)


if __name__ == "__main__":
    main()
