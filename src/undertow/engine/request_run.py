"""The life of one request in an engine: encoded, denoised picture by picture and pass by pass, decoded, finished."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from enum import Enum

import torch
from PIL import Image
from torch import Tensor

from undertow.attention.chosen import kernel_notes
from undertow.checkpoints.files.place import model_name
from undertow.checkpoints.read.model import LoadedModel
from undertow.engine.computing import PLAIN, Computing
from undertow.engine.decode import Decoder
from undertow.engine.denoise import Share, Task
from undertow.engine.denoising_run import DenoisingRun
from undertow.engine.encode import Encoded
from undertow.engine.events import Observer, PictureEvent, StepEvent
from undertow.engine.fault import Rescued
from undertow.engine.limits import BatchLimits
from undertow.engine.memory_of_request import MemoryOfRequest
from undertow.engine.options import NonFinite, RunOptions
from undertow.engine.outcomes import OutcomeLog, no_log
from undertow.engine.passes import Latents, Upscaled
from undertow.engine.probing import ForwardProbe
from undertow.engine.report import FoundFaults, Report, UsedFiles
from undertow.engine.request import GenerationRequest
from undertow.engine.result import GenerationResult
from undertow.engine.rows import Origin, Outcome, Row, attributed
from undertow.engine.watch import Watch
from undertow.shortage import is_out_of_memory
from undertow.unet.runner import EAGER, Runner

logger = logging.getLogger(__name__)

Work = Callable[[], None]


class Stage(Enum):
    """Where a request is."""

    WAITING = "waiting"
    ENCODED = "encoded"
    DENOISING = "denoising"
    DECODING = "decoding"
    """Every picture is denoised."""
    FINISHED = "finished"


class Cancelled(Exception):
    """Unwinds a picture whose request was cancelled."""


@dataclass(kw_only=True, eq=False)
class RequestRun:
    """A request on its way through an engine, which calls its methods one at a time.

    number: by which its events and errors name it. observers: called at each step of each picture. join, leave: of the
    batch. decode: queues work of the decoder. memory: what it needs of memory. outcomes: the log of what its pictures
    are answered. probes, runner, computing: of the engine. future: receives the result, or the error.
    """

    number: int
    model: LoadedModel
    request: GenerationRequest
    options: RunOptions
    limits: BatchLimits
    latents: Tensor | None
    join: Callable[[Task], None]
    leave: Callable[[Task], None]
    decode: "Callable[[RequestRun, Work], None]"
    memory: MemoryOfRequest
    observers: list[Observer] = field(default_factory=list)
    outcomes: OutcomeLog = field(default_factory=no_log)
    probes: Sequence[ForwardProbe] = ()
    runner: Runner = EAGER
    computing: Computing = PLAIN
    future: "Future[GenerationResult]" = field(default_factory=Future)
    cancelled: bool = False
    stage: Stage = Stage.WAITING
    step: int = 0
    steps: int = 0
    """Of each picture over all passes; 0 until the request is encoded."""
    rows: int = 0
    replayed_rows: int = 0
    """Evaluations whose outcomes came from the log."""
    _encoded: Encoded | None = field(default=None, init=False)
    _tasks: list[Task] = field(default_factory=list, init=False)
    _pictures: list[DenoisingRun] = field(default_factory=list, init=False)
    _finished: dict[int, Latents] = field(default_factory=dict, init=False)
    _images: dict[int, Image.Image] = field(default_factory=dict, init=False)
    _unseen: dict[int, StepEvent] = field(default_factory=dict, init=False)
    """Of each picture that is being replayed, the step that it has come to."""

    def __post_init__(self) -> None:
        origin = Origin(request=self.number, mark=self.options.mark)
        self.watch = Watch(debug=self.options.debug, probes=self.probes, origin=origin)
        self.faults = FoundFaults()
        self.future.set_running_or_notify_cancel()  # only `cancel` cancels

    @property
    def done(self) -> bool:
        return self.stage is Stage.FINISHED

    @property
    def cells(self) -> tuple[int, int] | None:
        """(height, width) of the finished latents; `None` until the request is encoded."""
        return None if self._encoded is None else self._encoded.passes[-1].layout.size

    def set_encoded(self, encoded: Encoded) -> None:
        """Takes what encoding has made of the request."""
        self._encoded, self.stage = encoded, Stage.ENCODED
        self.steps = sum(one.steps for one in encoded.passes)
        self._decoder = Decoder(
            model=self.model,
            request=self.request,
            watch=self.watch,
            low_vram=self.options.low_vram,
            clamp=self.options.vae_clamp,
            memory=self.memory.keeper,
            economy=self.memory.economy,
        )
        self._pictures = [
            DenoisingRun(
                seed=seed,
                passes=encoded.passes,
                number=self.number,
                index=index,
                variation=self.request.variation(index),
                watch=self.watch,
                entered=self._entered,
                mark=self.options.mark,
            )
            for index, seed in enumerate(self.request.seeds)
        ]

    def begin(self) -> None:
        """Every picture joins the batch."""
        if self.done:
            return
        self.stage = Stage.DENOISING
        for picture in self._pictures:
            if not self.cancelled and not self.done:
                self._begin_pass(picture, 0)

    def fail(self, error: BaseException) -> None:
        """Ends the request with an error; a picture that unwound because of `Cancelled` ends it without one."""
        for task in self._tasks:
            self.leave(task)
        if self.done:
            return
        if isinstance(error, Cancelled):
            self._finish()
        else:
            self.stage = Stage.FINISHED
            self._release()
            # An interruption ends the thread that works, not those that wait for this request.
            waits = error if isinstance(error, Exception) else attributed(error, f"request {self.number}")
            self.future.set_exception(waits)

    def _begin_pass(self, picture: DenoisingRun, index: int) -> None:
        task = Task(
            steps=picture.denoise(index),
            done=lambda latents: self._pass_done(picture, index, latents),
            failed=lambda error: self._drawing_failed(error, picture.index),
            shared=self._shared,
            limits=self.limits,
            non_finite=self._non_finite,
            rescued=self._rescued,
            looks_inside=self.options.debug.nan,
            less=self._draw_with_less,
            economy=self.memory.economy,
            least_bytes=self.memory.least_bytes,
            recorded=lambda rows: self._recorded(picture.index, rows),
            answered=lambda place, outcome: self.outcomes.picture(picture.index).answer(
                place, outcome, self.memory.units
            ),
        )
        self._tasks.append(task)
        self.join(task)

    def _drawing_failed(self, error: BaseException, picture: int) -> None:
        """Ends the request; one that ran out of memory says where."""
        where = f"request {self.number}, picture {picture}, while it was drawn"
        short = is_out_of_memory(error)
        self.fail(attributed(error, where, least_bytes=self.memory.least_bytes()) if short else error)

    def _pass_done(self, picture: DenoisingRun, index: int, latents: Latents) -> None:
        assert self._encoded is not None  # encoded before it begins
        later = self._encoded.passes[index + 1 :]
        if not later:
            self._finished[picture.index] = latents
            if len(self._finished) == len(self._pictures):
                self.stage = Stage.DECODING
            self.decode(self, lambda: self._decode(picture.index))
        elif isinstance(later[0].start, Upscaled):
            self.decode(self, lambda: self._upscale(picture, index))
        else:
            self._begin_pass(picture, index + 1)

    def _upscale(self, picture: DenoisingRun, index: int) -> None:
        """Enlarges the latents between two passes of a picture."""
        if self.done or self.cancelled:
            return
        log = self.outcomes.picture(picture.index)
        recorded = log.enlarged(index)
        try:
            latents = picture.upscale(index, self._decoder, recorded)
            if recorded is None:
                log.enlarge(index, latents, self.memory.units)
        except BaseException as error:
            self._decoding_failed(error, picture.index, lambda: self._upscale(picture, index))
        else:
            if recorded is None:
                self._unit_done("decode")
            self._begin_pass(picture, index + 1)

    def _decode(self, index: int) -> None:
        if self.done:
            return
        log = self.outcomes.picture(index)
        before = log.decoded_with
        try:
            if not self.cancelled:
                self._decoder.economy = self.memory.economy if before is None else before
                self._images[index] = self._decoder.picture(self._finished[index], index)
                if before is None:
                    log.decode(self.memory.units)
        except BaseException as error:
            log.decoded_with = None  # what sufficed then does not now
            self._decoding_failed(error, index, lambda: self._decode(index))
            return
        if before is None:
            self._unit_done("decode")
        if index in self._images and not self._hand_over(index):
            return
        if len(self._images) == len(self._pictures):
            self._finish()

    def _decoding_failed(self, error: BaseException, index: int, again: Work) -> None:
        """Decodes again with less memory if that is what ran out, and if anything is left to give way with."""
        latents = self._finished.get(index, self._pictures[index].latents)
        if is_out_of_memory(error) and latents is not None and self.memory.decode_with_less(latents, str(error)):
            self._spread()
            self.decode(self, again)
        else:
            self._fail_at(error, index, "while it was decoded")

    @property
    def _non_finite(self) -> NonFinite:
        """A request that is watched for NaN stops at the first, to be told where it is."""
        asked = self.options.non_finite
        return "fail" if self.options.debug.nan and asked == "upcast" else asked

    def _rescued(self, rescued: Rescued) -> None:
        for line in self.faults.add(rescued):
            logger.warning("%s", line)  # which says where

    def _draw_with_less(self, rows: Sequence[Row], said: str) -> bool:
        if not self.memory.draw_with_less(rows, said):
            return False
        self._spread()
        return True

    def _unit_done(self, work: str) -> None:
        if self.memory.unit_done(work):
            self._spread()

    def _spread(self) -> None:
        """Lets everything that is still to be done need as little memory as was decided."""
        self._decoder.economy = self.memory.economy
        for task in self._tasks:
            task.economy = self.memory.economy

    def _hand_over(self, index: int) -> bool:
        """Gives a finished picture to whoever takes them one by one; returns whether that went well."""
        event = PictureEvent(request=self.number, picture=index, image=self._images[index], report=self._report())
        try:
            self.options.drawn(event)
        except BaseException as error:
            self._fail_at(error, index, "when it was there")
            return False
        return True

    def _fail_at(self, error: BaseException, picture: int, when: str) -> None:
        """An error at a finished picture, which must not end the other requests; an interruption goes on to the
        caller."""
        if not isinstance(error, Exception):
            self.fail(error)
            raise error
        tried = str(self.memory.economy)
        least = self.memory.least_bytes() if is_out_of_memory(error) else None
        self.fail(attributed(error, f"request {self.number}, picture {picture}, {when}", tried, least))

    def _finish(self) -> None:
        self.stage = Stage.FINISHED
        try:
            result = self._result()
        except Exception as error:
            self._release()
            self.future.set_exception(error)
        else:
            self._release()
            logger.info("request %d: %r in %.1f s", self.number, result, sum(result.report.seconds.values()))
            self.future.set_result(result)

    def _release(self) -> None:
        """Lets go of every tensor but those of the result, for a handle may live on."""
        self._encoded = None
        self._tasks.clear()
        self._pictures.clear()
        self._finished.clear()
        self._images.clear()
        self._unseen.clear()
        self.outcomes.forget()
        self.outcomes = no_log()

    def _result(self) -> GenerationResult:
        """The finished pictures; of a cancelled request, the latents that it had reached."""
        reached = [self._finished.get(picture.index, picture.latents) for picture in self._pictures]
        found = [latents for latents in reached if latents is not None]
        return GenerationResult(
            images=[] if self.cancelled else [self._images[index] for index in sorted(self._images)],
            latents=torch.cat(found) if found else self._no_latents(),
            report=self._report(),
        )

    def _report(self) -> Report:
        encoded, model = self._encoded, self.model
        memory = self.memory.report(self.rows)
        decided = () if encoded is None else (*encoded.decisions, *self._decoder.notes)
        return Report(
            request=self.request,
            model=model_name(model.path),
            files=UsedFiles(
                model=model.path,
                refiner=None if encoded is None else encoded.refiner,
                adapters=() if encoded is None else encoded.used,
                embeddings={} if encoded is None else encoded.embeddings,
            ),
            size=(0, 0) if encoded is None else encoded.size,
            sampler="" if encoded is None else encoded.passes[-1].sampler.name,
            schedule="" if encoded is None else encoded.passes[-1].sampler.schedule,
            sigmas=() if encoded is None else tuple(encoded.passes[-1].sigmas),
            seconds=dict(self.watch.seconds),
            rows=self.rows,
            computing=self._computing(),
            replayed_rows=self.replayed_rows,
            replayed_steps=sum(self._replayed_steps()),
            cancelled=self.cancelled,
            decisions=(
                *model.report.notes,
                *decided,
                *self._replaced_kernels(),
                *self.faults.notes(),
                *memory.decisions,
                *self._resumed(),
            ),
            debug=tuple(self.watch.lines),
            faults=self.faults.first,
            upcast=dict(self.faults.upcast),
            clamped=dict(self.faults.clamped),
            memory=memory,
        )

    def _computing(self) -> Computing:
        """Slots matter to LoRA alone; and a graph that may come at any time draws nothing that must be repeatable."""
        slots = self.computing.slots if self.request.all_adapters else None
        eager = self.limits.runner(self.runner) is not self.runner
        return replace(self.computing, slots=slots, backend=None if eager else self.computing.backend)

    def _replaced_kernels(self) -> tuple[str, ...]:
        """Attention kernels that failed on this machine, and what took their place."""
        return () if self.model.unet is None else kernel_notes(self.model.unet.kernel)

    def _replayed_steps(self) -> list[int]:
        """Of each picture, the steps that came from the log."""
        return [self.outcomes.picture(index).reached(self.steps) for index in range(self.request.count)]

    def _resumed(self) -> tuple[str, ...]:
        """Where the pictures went on that came from a log."""
        if not self.replayed_rows:
            return ()
        steps = self._replayed_steps()
        place = f"{min(steps)}" if len(set(steps)) == 1 else f"{min(steps)} to {max(steps)}"
        return (f"resumed at step {place} of {self.steps}, by {self.replayed_rows} recorded rows",)

    def _no_latents(self) -> Tensor:
        """Cancelled before the first pass was done, or even before encoding."""
        size = (0, 0) if self._encoded is None else self._encoded.passes[0].layout.size
        return torch.empty(0, self.model.require_unet().config.out_channels, *size)

    def _entered(self, index: int, step: int, sigma: float, denoised: Tensor | None) -> None:
        self.step = max(self.step, step)
        event = StepEvent(
            request=self.number,
            picture=index,
            step=step,
            steps=self.steps,
            sigma=sigma,
            denoised=denoised,
            preview=lambda: None if denoised is None else self._decoder.preview(denoised),
            cancel=self.cancel,
        )
        if self.outcomes.picture(index).replaying:
            self._unseen[index] = event
        else:
            self._unseen.pop(index, None)
            self._tell(event)
        if self.cancelled:
            raise Cancelled

    def _tell(self, event: StepEvent) -> None:
        for observe in self.observers:
            observe(event)

    def _recorded(self, index: int, rows: Sequence[Row]) -> list[Outcome | None]:
        """What is recorded of the rows that a picture asks for. Observers see the step at which that ends."""
        log = self.outcomes.picture(index)
        found = log.recorded(rows, keep_non_finite=self.options.non_finite == "keep")
        self.replayed_rows += sum(one is not None for one in found)
        if None in found and (event := self._unseen.pop(index, None)) is not None:
            self._tell(event)
            if self.cancelled:
                raise Cancelled
        return found

    def cancel(self) -> None:
        """Ends the request before its next step."""
        self.cancelled = True

    def _shared(self, share: Share) -> None:
        self.rows = max(self.rows, share.rows)
        self.watch.add("unet", share.seconds)
        self._unit_done("denoise")
