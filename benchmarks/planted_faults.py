"""900 faults planted in models of the shapes of SD1, SD2 and SDXL: is each named, and is the picture saved?

    python -m benchmarks.planted_faults [--count 900] [--page docs/results/planted-faults.md]

Every fault acts in one row: in one module, at one step, in one branch of guidance of one request, while another request
is drawn with it. Of each kind it is known what is to be said of it:

    overflow        what a module gives is scaled so that its largest number is 200,000, and stored in its type
    hidden          queries or keys alike, with a largest number of 70,000, which fused attention may hide
    scores          queries and keys of 30,000 under a kernel that keeps scores in half precision
    weight          one weight is NaN
    conditioning    one number of the text's embedding is NaN
    input           one number of the scaled latents is infinite
    timestep        the timestep is NaN
    slots           one number of a LoRA in its slot is NaN
    adapter         what a LoRA adds to a layer has a largest number of 200,000
    control         what a module of a ControlNet gives is scaled, as in "overflow"
    control-weight  one weight of a ControlNet is NaN
    image           one number of what an IP-Adapter has a layer attend to is NaN

With the eager runner faults are planted around modules, as they are called, so that they act in one row of a forward
that others share; weights, slots and kernels, which rows share, are broken for forwards of one row. With the compiled
one nothing is around modules: weights and inputs are changed in place before a forward, and back after it, so that one
set of graphs computes all faults. Layers overflow there because their weights are larger by as much as that takes.

bfloat16 has float32's range, so there the largest number is 1e39 and more, and float32 cannot hold it either: it is to
be named "arithmetic", and nothing is saved. The module, step, row and cause have to be exactly these, the neighbor's
latents have to keep every bit, and the latents of a row that was saved are compared with those of the float32 model
that has the same fault planted, which overflows nothing there.
"""

import argparse
import json
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

import undertow
import undertow.engine.debug
from benchmarks.planting import GIVEN, AroundModules, Fault, InPlace, Planter, choice, factor_for
from tests.adapters.beside import control_file, picture, prompt_file
from tests.adapters.lora.files import kohya, layers_of
from tests.adapters.lora.files import write as write_lora
from tests.golden.pipelines import save_pipeline
from undertow import Adapter, AdapterCapacity, BatchLimits, GenerationRequest, UNetService
from undertow.adapters.control.kind import ControlFile
from undertow.engine.fault import Cause
from undertow.engine.options import RunOptions
from undertow.engine.result import GenerationResult
from undertow.errors import NonFiniteError
from undertow.inspection.recorder import Recorder
from undertow.nn.attention import AttentionProjections
from undertow.unet.runner import Capabilities

RunnerName = Literal["eager", "compiled"]
STEPS = 2
PLAIN = GenerationRequest(prompt="red apple", steps=STEPS, seed=3, size=(16, 16))
NEIGHBOR = GenerationRequest(prompt="green tree", steps=STEPS, seed=4, size=(16, 16))
SHARED = BatchLimits(padded_to=4)
ALONE = BatchLimits(padded_to=1, rows=1)
SHARES = {
    "overflow": 10,
    "hidden": 3,
    "scores": 1,
    "weight": 3,
    "conditioning": 1,
    "input": 1,
    "timestep": 1,
    "slots": 1,
    "adapter": 1,
    "control": 2,
    "control-weight": 1,
    "image": 1,
}
EXTRA: Mapping[str, str] = {
    "slots": "lora",
    "adapter": "lora",
    "control": "control",
    "control-weight": "control",
    "image": "image",
}
"""What a request has for a kind of fault."""

Requests = Mapping[str, GenerationRequest]
Sizes = Mapping[tuple[str, int, str], float]


class Graphs:
    """`undertow.unet.runner.CompiledRunner` with graphs that are traced as there, and whose operations then run one by
    one: compiling each of them to machine code takes longer than all faults."""

    capabilities = Capabilities(observable=False, fixed_shapes=True, slots=True, merging=True)

    def __init__(self) -> None:
        self._compiled = torch.compile(_predict, backend="aot_eager", fullgraph=True, dynamic=False)

    def run(self, network: torch.nn.Module, *inputs: Any) -> Any:
        return network(*inputs, compute=self._compiled)


def _predict(network: Any, *inputs: Any) -> Any:
    return network.predict(*inputs)


def saved_requests(folder: Path) -> Requests:
    """The request alone, and with an adapter of each kind, whose files are written for the pipeline in the folder."""
    unet = undertow.load(folder, dtype=torch.float32).unet
    lora = write_lora(folder.parent / "lora.safetensors", kohya(layers_of(unet), rank=4))
    control = control_file(folder.parent / "control", unet, seed=5)
    image = prompt_file(folder.parent / "image" / "image.safetensors", unet, seed=6)
    adapters = {
        "lora": Adapter(lora, scale=0.5),
        "control": Adapter(control, image=picture(3, 16, 16), name="edges"),
        "image": Adapter(image, image=picture(4, 16, 16)),
    }
    return {"": PLAIN} | {name: replace(PLAIN, adapters=(one,)) for name, one in adapters.items()}


def control_network(service: UNetService, requests: Requests) -> torch.nn.Module:
    """The ControlNet as the service has it in memory."""
    (adapter,) = requests["control"].adapters
    file = service.adapters.read(adapter.source)
    assert isinstance(file, ControlFile)
    return file.network


def places(half: UNetService, requests: Requests) -> dict[str, list[str]]:
    """Modules where each kind of fault can be planted."""
    names = dict(half.unet.named_modules())
    leaves = [n for n, m in names.items() if not list(m.children()) and not n.endswith(IDLE)]
    layers = [n for n in leaves if getattr(names[n], "weight", None) is not None]
    slotted = [n for n, m in names.items() if getattr(m, "slots", None) is not None]
    attentions = [n for n, m in names.items() if isinstance(m, AttentionProjections)]
    network = control_network(half, requests)
    beside = {f"controlnet.edges.{n}": m for n, m in network.named_modules() if not n.startswith("controlnet_cond")}
    control = [n for n, m in beside.items() if not list(m.children()) and not n.endswith(IDLE)]
    return {
        "overflow": leaves,
        "hidden": [f"{n}.{one}" for n in attentions for one in ("to_q", "to_k")],
        "scores": attentions,
        "weight": layers,
        "conditioning": ["context"],
        "input": ["latents"],
        "timestep": ["timesteps"],
        "slots": slotted,
        "adapter": slotted,
        "control": control,
        "control-weight": [n for n in control if getattr(beside[n], "weight", None) is not None],
        "image": list(half.unet.config.cross_attentions()),
    }


def faults(where: Mapping[str, list[str]], dtype: torch.dtype, runner: RunnerName, seed: int) -> Iterator[Fault]:
    """One after the other, without end."""
    pick = random.Random(seed)
    # In bfloat16 nothing is hidden by the kernel of these sizes. Graphs have their kernel in them, and a layer that
    # overflows because of its slots alone is found by calling it twice.
    half = dtype == torch.float16
    wide = () if half else ("hidden", "scores", "adapter")
    graphs = ("scores", "adapter") if runner == "compiled" else ()
    shares = {kind: share for kind, share in SHARES.items() if kind not in (*wide, *graphs)}
    causes: dict[str, Cause] = {
        "overflow": "overflow" if half else "arithmetic",
        "control": "overflow" if half else "arithmetic",
        "hidden": "overflow",
        "scores": "scores",
        "weight": "weight",
        "control-weight": "weight",
        "conditioning": "conditioning",
        "input": "input",
        "timestep": "timestep",
        "slots": "adapter",
        "adapter": "adapter",
        "image": "adapter",
    }
    turns = Counter[str]()
    while True:
        kind = choice(pick, shares)
        place = where[kind][turns[kind] % len(where[kind])] if kind == "overflow" else pick.choice(where[kind])
        turns[kind] += 1
        # SDXL's empty negative prompt is zeros, and so are its keys and values: nothing there can be scaled.
        branches = ("cond",) if ".attn2" in place else ("cond", "uncond")
        step, branch = pick.randrange(STEPS), pick.choice(branches)
        named = f"image[{place}][0].keys" if kind == "image" else ""
        yield Fault(kind=kind, module=place, step=step, branch=branch, cause=causes[kind], named=named)


def limits_of(fault: Fault, runner: RunnerName) -> BatchLimits:
    of_a_row = (*GIVEN, "overflow", "hidden", "control") if runner == "eager" else GIVEN
    return SHARED if fault.kind in of_a_row else ALONE


IDLE = ("ff.net.1", "dropout", "slots")
"""Modules that give nothing of their own."""

COMPARED = 12
"""Pictures of each line that are compared with float32's."""


@dataclass(kw_only=True)
class Tally:
    planted: int = 0
    named: int = 0
    neighbors: int = 0
    saved: int = 0
    hidden: int = 0
    errors: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])
    """To float32, and the fault."""
    wrong: list[str] = field(default_factory=list[str])
    kinds: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SHARES, 0))
    kinds_named: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SHARES, 0))
    seconds: float = 0.0


Tallies = dict[tuple[str, torch.dtype, RunnerName], Tally]


def draw(
    service: UNetService, request: GenerationRequest, limits: BatchLimits, probe: Planter | None = None, debug: str = ""
) -> tuple[GenerationResult | NonFiniteError, GenerationResult]:
    """The result of the request, or its error, and its neighbor's."""
    options = RunOptions(limits=limits, debug=undertow.engine.debug.Debug.parse(debug))
    if probe is not None:
        service.engine.probes.append(probe)
    try:
        first, other = service.engine.submit_together([request, NEIGHBOR], options=options, numbers=(0, 1))
        neighbor = other.result()
        try:
            return first.result(), neighbor
        except NonFiniteError as error:
            return error, neighbor
    finally:
        if isinstance(probe, InPlace):
            probe.undo()
        if probe is not None:
            service.engine.probes.remove(probe)


def largest_numbers(service: UNetService, requests: Requests) -> Sizes:
    """What each module gives, by module, step and branch: of the U-Net alone and of the ControlNet."""
    found: dict[tuple[str, int, str], float] = {}
    for name in ("control", ""):
        recorder = Recorder(patterns=("*", "controlnet.*") if name else ("*",), sides=("output",), moments=False)
        service.engine.probes.append(recorder)
        service.generate_many([requests[name]], limits=ALONE)
        service.engine.probes.remove(recorder)
        for record in recorder.records:
            if record.low is not None and record.high is not None:
                key = (record.module, record.origin.step, record.origin.branch)
                found[key] = max(-record.low, record.high)
    return found


def run(
    family: str, dtype: torch.dtype, runner: RunnerName, count: int, folder: Path, requests: Requests, seed: int
) -> Tally:
    capacity = AdapterCapacity(slots=1, rank=4, per_row=1)
    whole = undertow.load(folder, dtype=torch.float32, adapter_capacity=capacity)
    half = undertow.load(folder, dtype=dtype, adapter_capacity=capacity)
    sizes = largest_numbers(half, requests) if runner == "compiled" else {}
    beside = control_network(half, requests)
    if runner == "compiled":
        torch.compiler.reset()  # the graphs of another model
        half.runner = Graphs()
        vars(half).pop("engine")
    calm: dict[tuple[str, bool], torch.Tensor] = {}
    tally, started = Tally(), time.perf_counter()
    planned = faults(places(half, requests), dtype, runner, seed)
    while tally.planted < count:
        fault = next(planned)
        probe = planter(half, fault, dtype, runner, sizes, beside)
        if probe is None:
            continue
        limits, name = limits_of(fault, runner), EXTRA.get(fault.kind, "")
        if (name, limits is SHARED) not in calm:
            calm[name, limits is SHARED] = draw(half, requests[name], limits)[1].latents
        inside = "nan" if runner == "compiled" and fault.module.endswith((".to_q", ".to_k")) else ""
        found, neighbor = draw(half, requests[name], limits, probe, inside)
        said = found.fault if isinstance(found, NonFiniteError) else next(iter(found.report.faults), None)
        tally.planted += 1
        tally.kinds[fault.kind] += 1
        if said is not None and fault.expected == (
            said.module, said.cause, said.origin.request, said.origin.step, said.origin.branch
        ):  # fmt: skip
            tally.named += 1
            tally.kinds_named[fault.kind] += 1
        else:
            tally.wrong.append(f"{family} {dtype} {runner} {fault}: {said} {None if said is None else said.origin}")
        tally.hidden += said is not None and said.hidden
        tally.neighbors += torch.equal(neighbor.latents, calm[name, limits is SHARED])
        if not isinstance(found, NonFiniteError):
            tally.saved += 1
            if fault.kind in ("overflow", "control", "adapter") and len(tally.errors) < COMPARED:
                other = planter(whole, fault, torch.float32, runner, sizes, beside, like=probe)
                expected, _ = draw(whole, requests[name], limits, other)
                if isinstance(expected, NonFiniteError):
                    tally.wrong.append(f"{family} {dtype} {runner} {fault}: in float32 {expected}")
                    continue
                difference = (found.latents - expected.latents).norm() / expected.latents.norm()
                tally.errors.append((float(difference), str(fault)))
    tally.seconds = time.perf_counter() - started
    return tally


def planter(
    service: UNetService,
    fault: Fault,
    dtype: torch.dtype,
    runner: RunnerName,
    sizes: Sizes,
    beside: torch.nn.Module,
    like: Planter | None = None,
) -> Planter | None:
    """`None` where it cannot be planted: the type holds no weights that are so large. beside: the ControlNet. like: for
    another network."""
    if runner == "eager":
        return AroundModules(fault, dtype)
    if isinstance(like, InPlace):
        return InPlace(fault, dtype, like.factor)
    if fault.kind not in ("overflow", "hidden", "control"):
        return InPlace(fault, dtype)
    name = fault.module.removeprefix("controlnet.edges.")
    module = (service.unet if name == fault.module else beside).get_submodule(name)
    factor = factor_for(fault, module, sizes, dtype) if list(module.parameters(recurse=False)) else 0.0
    return InPlace(fault, dtype, factor) if factor else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=900)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--families", default="sd1,sd2,sdxl", help="a comma list of those to plant faults in")
    parser.add_argument("--runners", default="eager,compiled", help="a comma list of those to plant faults under")
    parser.add_argument("--keep", type=Path, help="a folder for each line's numbers, from which it goes on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    runners: tuple[RunnerName, ...] = ("eager", "compiled")
    cases = [
        (family, dtype, runner)
        for family in ("sd1", "sd2", "sdxl")
        for dtype in (torch.float16, torch.bfloat16)
        for runner in runners
    ]
    tallies: Tallies = {}
    with tempfile.TemporaryDirectory() as place:
        folders = {f: save_pipeline(f, Path(place) / f / "pipeline") for f in options.families.split(",")}
        requests = {family: saved_requests(folder) for family, folder in folders.items()}
        for seed, (family, dtype, runner) in enumerate(cases):
            share = options.count // len(cases)
            if family not in folders or runner not in options.runners.split(","):
                continue
            folder, asked = folders[family], requests[family]
            kept = None if options.keep is None else options.keep / f"{family}-{dtype}-{runner}-{share}.json"
            if kept is not None and kept.is_file():
                tallies[family, dtype, runner] = Tally(**json.loads(kept.read_text()))
                continue
            tally = tallies[family, dtype, runner] = run(family, dtype, runner, share, folder, asked, seed)
            if kept is not None:
                kept.write_text(json.dumps(asdict(tally)))
            print(row_of(family, dtype, runner, tally), f"{tally.seconds:.0f} s", flush=True)
            for line in tally.wrong:
                print("  wrong:", line, flush=True)
            for error, fault in sorted(tally.errors, key=lambda one: -one[0])[:3]:
                print(f"  {error:.2e} to float32: {fault}", flush=True)
    if options.page is not None:
        write(options.page, tallies)
    if any(one.named != one.planted or one.neighbors != one.planted for one in tallies.values()):
        sys.exit(1)


def row_of(family: str, dtype: torch.dtype, runner: RunnerName, one: Tally) -> str:
    name = str(dtype).removeprefix("torch.")
    errors = [error for error, _ in one.errors]
    close = f"median {median(errors):.1e}, worst {max(errors):.1e}" if errors else "nothing to save"
    counts = f"{one.planted} | {one.named} | {one.neighbors} | {one.saved} | {one.hidden}"
    return f"| {family} | {name} | {runner} | {counts} | {close} |"


def write(page: Path, tallies: Tallies) -> None:
    """Puts the tables between the page's marks."""
    rows = ["| model | type | runner | planted | named | neighbor's bits | saved | hidden | difference to float32 |",
            "|---|---|---|--:|--:|--:|--:|--:|---|"]  # fmt: skip
    rows += [row_of(*case, one) for case, one in tallies.items()]
    total = [
        sum(getattr(one, key) for one in tallies.values())
        for key in ("planted", "named", "neighbors", "saved", "hidden")
    ]
    rows.append("| all | | | " + " | ".join(map(str, total)) + " | |")
    rows += ["", "| kind | planted | named |", "|---|--:|--:|"]
    for kind in SHARES:
        planted = sum(one.kinds[kind] for one in tallies.values())
        rows.append(f"| {kind} | {planted} | {sum(one.kinds_named[kind] for one in tallies.values())} |")
    text = page.read_text()
    before, rest = text.split("<!-- table -->")[0], text.split("<!-- /table -->")[1]
    page.write_text(before + "<!-- table -->\n\n" + "\n".join(rows) + "\n\n<!-- /table -->" + rest)


if __name__ == "__main__":
    main()
