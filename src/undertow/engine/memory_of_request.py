"""What one request needs of memory: its peaks, and how it gives way when memory runs out."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

from undertow.checkpoints.read.model import LoadedModel
from undertow.engine.limits import BatchLimits
from undertow.engine.memory_need import decoding_range
from undertow.engine.options import RunOptions
from undertow.engine.passes import Latents
from undertow.engine.rows import Row
from undertow.memory.keeper import Keeper
from undertow.memory.ladder import Economy, StepDown, decoded_with_less, drawn_with_less, read_with_less
from undertow.memory.report import MemoryReport
from undertow.unet.runner import Runner


class MemoryOfRequest:
    """economy: what is done to need less from now on. keeper: of the engine's memory."""

    def __init__(self, keeper: Keeper, model: LoadedModel, options: RunOptions, runner: Runner):
        self.keeper = keeper
        self.economy = Economy()
        self._model, self._options, self._runner = model, options, runner
        self._ahead = list(options.course)
        self._course: list[StepDown] = []
        self._units = 0
        self._peaks: dict[str, int] = {}
        self._evictions = keeper.residency.evictions
        self._keep_to_course()

    def using(self, network: object) -> AbstractContextManager[None]:
        """Has a network in memory inside."""
        return self.keeper.using(network, self.economy)

    def unit_done(self, work: str) -> bool:
        """Counts a unit of work, and notes its peak. Returns whether the economy changes, as the course says."""
        self.note_peak(work)
        self._units += 1
        return self._keep_to_course()

    def note_peak(self, work: str) -> None:
        """Notes the peak of the unit of work that is being done."""
        peak = self.keeper.peak()
        if peak is not None:
            self._peaks[work] = max(peak, self._peaks.get(work, 0))

    def read_with_less(self, said: str) -> bool:
        """After reading prompts and pictures ran out of memory; returns whether there is anything left to do."""
        possible = self.keeper.possible(None, fewer_rows=False, chunks=False, merged=False)
        return self._go_on(read_with_less(self.economy, possible), f"reading the request ({said})")

    def draw_with_less(self, rows: Sequence[Row], limits: BatchLimits, said: str) -> bool:
        """After a forward of these rows ran out of memory."""
        possible = self.keeper.possible(
            rows[0].unet,
            fewer_rows=limits.padded_to is None,
            chunks=not self._runner.capabilities.fixed_shapes,
            merged=bool(rows[0].merged),
        )
        less = drawn_with_less(self.economy, len(rows), possible)
        return self._go_on(less, f"a forward of {len(rows)} rows ({said})")

    def decode_with_less(self, latents: Latents, said: str) -> bool:
        """After decoding these latents ran out of memory."""
        vae = self._model.require_vae()
        possible = self.keeper.possible(vae, fewer_rows=False, chunks=False, merged=False)
        least, whole = decoding_range(vae, (latents.shape[2], latents.shape[3]))
        return self._go_on(decoded_with_less(self.economy, whole, least, possible), f"decoding ({said})")

    def report(self) -> MemoryReport:
        options, tracker = self._options, self.keeper.tracker
        return MemoryReport(
            peaks=dict(self._peaks),
            budget_bytes=options.budget_bytes,
            tensors_bytes=None if options.budget_bytes is None else tracker.peak_bytes,
            economy=self.economy,
            course=tuple(self._course),
            evictions=self.keeper.residency.evictions - self._evictions,
        )

    def _go_on(self, economy: Economy | None, work: str) -> bool:
        if economy is None:
            return False
        self._take(StepDown(unit=self._units, work=work, economy=economy))
        return True

    def _keep_to_course(self) -> bool:
        due = [step for step in self._ahead if step.unit <= self._units]
        for step in due:
            self._ahead.remove(step)
            self._take(step)
        return bool(due)

    def _take(self, step: StepDown) -> None:
        self.economy = step.economy
        self._course.append(step)
