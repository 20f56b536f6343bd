"""Two runs that should agree: the first module that departs, by how much, and how that grows.

Run A draws. In each of its forwards B's network receives A's latents, timestep and conditioning and is answered with
A's prediction, so that the departures of one step are not those of the steps before it. Within a forward B computes
twice: by itself, and with every module given what A's received.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image
from torch import nn

from undertow.adapters.adapter import Adapter
from undertow.doors import checked, nearest
from undertow.engine.events import Observer, StepEvent
from undertow.engine.handle import Handle
from undertow.engine.limits import BatchLimits
from undertow.engine.options import RunOptions
from undertow.engine.request import GenerationRequest
from undertow.errors import InvalidInput, OutOfMemory, UndertowError
from undertow.free_memory import free_bytes
from undertow.inspection.departure import PICTURE, TEXT, Comparison, Departure, ForwardErrors, Place, usual_tolerance
from undertow.inspection.departure_runs import (
    Drawing,
    Following,
    Forward,
    Recording,
    described,
    engine_of,
    hearing_text,
    text_prefix,
)
from undertow.inspection.departure_tape import (
    Evidence,
    Forced,
    Grown,
    OwnError,
    Tape,
    listening,
    modules_of,
    relative_error,
)
from undertow.inspection.diffusers_tree import DiffusersTree

EVERYTHING = ("*",)

ONE_ROW = RunOptions(limits=BatchLimits(rows=1))
"""A row at a time: half the memory, and every number has one origin."""

Modules = Mapping[str, nn.Module]

MOST_BYTES = 64 * 2**20
"""Of a module's weights that are kept with its departure."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Caught:
    """The first departure, its tensors, and the forward of A that it is in; `None` in the text encoders. modules:
    copies of A's and B's, with the weights that they had then, where they hold no others and are small."""

    departure: Departure
    evidence: Evidence
    forward: Forward | None
    modules: tuple[nn.Module | None, nn.Module | None]


@dataclass(kw_only=True, eq=False)
class _Findings:
    """What was found so far. kinds: classes of modules by name."""

    tolerance: float
    text: dict[str, float] = field(default_factory=dict[str, float])
    forwards: list[ForwardErrors] = field(default_factory=list[ForwardErrors])
    caught: Caught | None = None
    first: Departure | None = None
    notes: list[str] = field(default_factory=list[str])

    def take(self, forced: Forced, place: Place, a: Modules, b: Modules, forward: Forward | None) -> None:
        """Keeps the first departure of a forward or stage, unless there was one before."""
        evidence = forced.first
        if evidence is None or self.first is not None:
            return
        before = forced.errors[: forced.errors.index(evidence.own)]
        self.first = Departure(
            place=place,
            own=evidence.own,
            agreed=max((one.error for one in before), default=0.0),
            kind=type(b[evidence.own.module]).__name__ if evidence.own.module in b else "",
        )
        kept = _kept(a.get(self.first.module)), _kept(b.get(self.first.module))
        self.caught = Caught(departure=self.first, evidence=evidence, forward=forward, modules=kept)

    def take_whole(self, place: Place, name: str, error: float) -> None:
        """A stage of which only the whole is seen."""
        if self.first is None and error > self.tolerance:
            self.first = Departure(place=place, own=OwnError(module=name, error=error), agreed=0.0)


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
    of what is free. Errors: `InvalidInput` for patterns without a module and for models of unlike architecture;
    `OutOfMemory`; what drawing A raises.

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
    request = replace(request, count=1)
    network = b.network if isinstance(b, DiffusersTree) else b.model.require_unet()
    for pattern in modules:
        _require_match(a, pattern)
    _require_alike(a.model.require_unet(), network)
    dtypes = [a.model.require_unet().dtype, next(network.parameters()).dtype]
    same_way = not isinstance(b, DiffusersTree) and described(a) == described(b)
    chosen = usual_tolerance(dtypes, same_way=same_way) if tolerance is None else tolerance
    findings = _Findings(tolerance=chosen)
    pair = _Pair(a=a, b=b, request=request, modules=modules, findings=findings)
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
    if _is_compiled(a) or (not isinstance(b, DiffusersTree) and _is_compiled(b)):
        findings.notes.append("of a compiled graph the whole is compared: nothing sees the modules inside it")
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


@dataclass(kw_only=True, eq=False)
class _Pair:
    """A, which draws, and what is compared with it. estimates: A's, of the picture, step by step."""

    a: Drawing
    b: Drawing | DiffusersTree
    request: GenerationRequest
    modules: Sequence[str]
    findings: _Findings
    estimates: list[torch.Tensor] = field(default_factory=list[torch.Tensor])
    free: list[float] = field(default_factory=list[float])

    def __post_init__(self) -> None:
        free = free_bytes(torch.device("cpu"))
        self.tape = Tape() if free is None else Tape(limit_bytes=free / 2)
        self.engine = engine_of(self.a)
        self.recording = Recording(tape=self.tape, patterns=self.modules)
        self.engine.probes.append(self.recording)

    def in_turns(self, b: Drawing, theirs: GenerationRequest) -> float:
        """A's forwards and B's by turns. Returns how far the decoded pictures are from each other."""
        text, forced_text = Tape(), Forced(tape=Tape(), tolerance=self.findings.tolerance, root="text_encoder")
        with hearing_text(self.a, self.modules, text):
            mine = self._submitted()
            self._next_forward(mine)
        forced_text.tape = text
        following = Following(tape=self.tape, patterns=self.modules)
        engine = engine_of(b)
        engine.probes.append(following)
        with hearing_text(b, self.modules, forced_text):
            handle = engine.submit(theirs, options=ONE_ROW)
            self._follow(handle, engine.step, following)
        self._take_text(b, forced_text, following.conditioning)
        while following.other is not None:
            self._compare(b, following)
            self._next_forward(mine)
            self._follow(handle, engine.step, following)
        return _pictures_differ(handle.result().images[0], mine.result().images[0])

    def beside_a_tree(self, tree: DiffusersTree) -> None:
        """A's forwards, and the tree's on the same inputs."""
        modules = modules_of(tree.network, "unet", self.modules)
        mine = self._submitted()
        while (forward := self._next_forward(mine)) is not None:
            grown = Grown(tape=self.tape)
            with listening(modules, grown):
                prediction = tree.predict(forward.call)
            forced = self._forced()
            with listening(modules, forced):
                tree.predict(forward.call)
            error = relative_error(prediction, forward.output.prediction)
            compiled = _graph_departs(self.a, forward) if _is_compiled(self.a) else None
            self._note(forced, grown.errors, modules, error, forward, compiled=compiled)

    def alone(self, b: Drawing, theirs: GenerationRequest) -> None:
        """B draws by itself; how far its estimates of the picture are from A's."""
        found: list[torch.Tensor] = []
        handle = engine_of(b).submit(theirs, _noting(found), options=replace(ONE_ROW, non_finite="keep"))
        try:
            found.append(handle.result().latents)
        except UndertowError as error:
            self.findings.notes.append(f"drawing alone, B fails: {error}")
        self.free = [relative_error(one, other) for one, other in zip(found, self.estimates, strict=False)]

    def _submitted(self) -> Handle:
        """A's request."""
        return self.engine.submit(self.request, _noting(self.estimates), options=ONE_ROW)

    def _next_forward(self, mine: Handle) -> Forward | None:
        """Of A; `None` at the end. Errors: what A's request met; `OutOfMemory` for more than can be kept."""
        self.recording.done = None
        while self.recording.done is None and not mine.done:
            self.engine.step()
        if self.tape.is_full:
            mine.cancel()
            raise OutOfMemory(
                "what the modules of a forward compute",
                needed_bytes=self.tape.size_bytes,
                remedy="draw a smaller picture, or name fewer modules",
            )
        if self.recording.done is None:
            self.estimates.append(mine.result().latents)
        return self.recording.done

    def _follow(self, handle: Handle, step: Callable[[], bool], following: Following) -> None:
        """B, until it has computed A's forward, or to its end."""
        following.other, following.own = self.recording.done, None
        while following.own is None and not handle.done:
            step()
        if following.other is not None and following.own is None:
            handle.result()  # raises what its request met
            raise InvalidInput("B", "done before A", "as many forwards in both", "compare the same request")

    def _take_text(self, b: Drawing, forced: Forced, conditioning: float) -> None:
        """conditioning: how far B's is from A's, although each module was given what A's received."""
        self.findings.text = _largest(forced.errors)
        self.findings.take(forced, Place(stage=TEXT), self._text_modules(self.a), self._text_modules(b), None)
        if forced.errors:
            self.findings.take_whole(Place(stage=TEXT), "conditioning", conditioning)

    def _text_modules(self, side: Drawing) -> Modules:
        modules: dict[str, nn.Module] = {}
        for index, encoder in enumerate(() if side.model.text is None else side.model.text.encoders):
            modules |= modules_of(encoder, text_prefix(index), self.modules)
        return modules

    def _compare(self, b: Drawing, following: Following) -> None:
        """B's modules by themselves, and compiled graphs where there are some, on A's inputs."""
        own, forward = following.own, following.other
        assert own is not None
        assert forward is not None
        modules, forced = modules_of(own.unet, "unet", self.modules), self._forced()
        with listening(modules, forced):
            own.unet(*own.call.inputs)
        compiled = [_graph_departs(side, one) for side, one in ((self.a, forward), (b, own)) if _is_compiled(side)]
        self._note(
            forced,
            following.grown,
            modules,
            relative_error(own.output.prediction, forward.output.prediction),
            forward,
            latents=following.latents,
            conditioning=following.conditioning,
            compiled=max(compiled, default=None),
        )

    def _note(
        self,
        forced: Forced,
        grown: Mapping[str, float],
        modules: Mapping[str, nn.Module],
        prediction: float,
        forward: Forward,
        *,
        latents: float = 0.0,
        conditioning: float = 0.0,
        compiled: float | None = None,
    ) -> None:
        origin = forward.call.origin
        place = Place(step=origin.step, branch=origin.branch, window=origin.window)
        errors = ForwardErrors(
            place=place,
            own=_largest(forced.errors),
            grown=grown,
            prediction=prediction,
            latents=latents,
            conditioning=conditioning,
            compiled=compiled,
        )
        self.findings.take(forced, place, modules_of(forward.unet, "unet", self.modules), modules, forward)
        if compiled is not None:
            self.findings.take_whole(place, "unet, compiled", compiled)
        self.findings.forwards.append(errors)

    def _forced(self) -> Forced:
        return Forced(tape=self.tape, tolerance=self.findings.tolerance, root="unet")


def _kept(module: nn.Module | None) -> nn.Module | None:
    """A copy, since weights may be merged into it and taken out again."""
    if module is None or any(True for _ in module.children()):
        return None
    size = sum(weight.numel() * weight.element_size() for weight in module.parameters())
    return copy.deepcopy(module) if size <= MOST_BYTES else None


def _is_compiled(side: Drawing) -> bool:
    """Whether hooks see nothing of what it runs."""
    return not side.runner.capabilities.observable


def _graph_departs(side: Drawing, eager: Forward) -> float:
    """How far its runner is from the same network computed eagerly on the same inputs."""
    return relative_error(side.runner.run(eager.unet, *eager.call.inputs).prediction, eager.output.prediction)


def _pictures_differ(found: Image.Image, expected: Image.Image) -> float:
    """The relative error of pixels; a difference of one level of 255 is rounding."""
    b, a = (torch.from_numpy(np.asarray(one).astype(np.float32)) for one in (found, expected))
    difference = b - a
    return relative_error(a + difference.sign() * (difference.abs() - 1).clamp(min=0), a)


def _noting(estimates: list[torch.Tensor]) -> Observer:
    def note(event: StepEvent) -> None:
        if event.denoised is not None:
            estimates.append(event.denoised.detach().cpu().clone())

    return note


def _largest(errors: Sequence[OwnError]) -> dict[str, float]:
    """By module, in the order of execution."""
    found: dict[str, float] = {}
    for one in errors:
        found[one.module] = max(one.error, found.get(one.module, 0.0))
    return found


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
