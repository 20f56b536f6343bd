"""Two runs that are compared forward by forward: one draws, and the other computes what it computed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image
from torch import nn

from undertow.engine.events import Observer, StepEvent
from undertow.engine.handle import Handle
from undertow.engine.limits import BatchLimits
from undertow.engine.options import RunOptions
from undertow.engine.request import GenerationRequest
from undertow.errors import InvalidInput, OutOfMemory, UndertowError
from undertow.free_memory import free_bytes
from undertow.inspection.departure import TEXT, ForwardErrors, Place
from undertow.inspection.departure_findings import Findings, Modules, largest
from undertow.inspection.departure_runs import (
    Drawing,
    Following,
    Forward,
    Recording,
    engine_of,
    hearing_text,
    text_prefix,
)
from undertow.inspection.departure_tape import Forced, Grown, Tape, listening, modules_of, relative_error
from undertow.inspection.diffusers_tree import DiffusersTree

ONE_ROW = RunOptions(limits=BatchLimits(rows=1))
"""A row at a time: half the memory, and every number has one origin."""


@dataclass(kw_only=True, eq=False)
class Pair:
    """A, which draws, and what is compared with it. estimates: A's, of the picture, step by step."""

    a: Drawing
    b: Drawing | DiffusersTree
    request: GenerationRequest
    modules: Sequence[str]
    findings: Findings
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
            compiled = _graph_departs(self.a, forward) if is_compiled(self.a) else None
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
        self.findings.text = largest(forced.errors)
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
        compiled = [_graph_departs(side, one) for side, one in ((self.a, forward), (b, own)) if is_compiled(side)]
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
            own=largest(forced.errors),
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


def is_compiled(side: Drawing) -> bool:
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
