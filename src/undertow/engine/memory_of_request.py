"""What one request needs of memory: its peaks, and how it gives way when memory runs out."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress

from undertow.adapters.manager import AdapterManager
from undertow.attention.chosen import holds_scores
from undertow.checkpoints.read.model import LoadedModel
from undertow.engine.limits import BatchLimits
from undertow.engine.memory_need import decoding_range
from undertow.engine.options import RunOptions
from undertow.engine.outcomes import OutcomeLog
from undertow.engine.passes import Latents
from undertow.engine.picture_size import largest_size
from undertow.engine.planning import Planned, planned
from undertow.engine.request import GenerationRequest
from undertow.engine.row_count import rows_of_picture
from undertow.engine.rows import Row, networks_beside
from undertow.errors import OutOfMemory, UndertowError
from undertow.memory.keeper import Keeper
from undertow.memory.ladder import Economy, StepDown, decoded_with_less, drawn_with_less, read_with_less
from undertow.memory.report import MemoryReport
from undertow.memory.work import Work
from undertow.shortage import size_in_words
from undertow.unet.runner import Runner


class MemoryOfRequest:
    """economy: what is done to need less from now on. budget_bytes: that holds for it; none until it is planned for.
    keeper: of the engine's memory."""

    def __init__(
        self,
        keeper: Keeper,
        model: LoadedModel,
        request: GenerationRequest,
        options: RunOptions,
        *,
        limits: BatchLimits,
        manager: AdapterManager,
        runner: Runner,
        outcomes: OutcomeLog,
    ):
        self.keeper = keeper
        self.economy = Economy()
        self.budget_bytes: int | None = None
        self._model, self._request, self._options = model, request, options
        self._limits, self._manager, self._runner = limits, manager, runner
        self._outcomes = outcomes
        self.units = outcomes.units
        """Of work that are done."""
        self._course = list(outcomes.course)
        if self._course:
            self.economy = self._course[-1].economy
        self._ahead = [step for step in options.course if step not in self._course]
        self._peaks: dict[str, int] = {}
        self._forecast_bytes: int | None = None
        self._forecasts: dict[int, int] = {}
        """By the rows of a forward, as `_whole_bytes` has it."""
        self._evictions = keeper.residency.evictions
        self._keep_to_course()

    def keep_to_budget(self) -> None:
        """Decides what is done from the beginning so that the request keeps to its budget, if it has one. Errors:
        `OutOfMemory` for a budget that is smaller than the least that there is; those of `planned`."""
        budget = self._options.budget_bytes
        if self.budget_bytes is not None:
            return  # planned already: it is being read again, with less memory
        if budget is not None and not (self._options.course or self._course) and self.keeper.others_bytes is None:
            self._plan_for(budget)
        self.budget_bytes = budget

    def _plan_for(self, budget: int) -> None:
        besides = self.keeper.besides_bytes
        asked, rows = self._planned()
        found = asked.plan(max(1, budget - besides), seconds=False)
        self._forecast_bytes = found.process_bytes + besides
        if not found.fits and self._request.views is None:  # whose windows need less than the whole picture
            height, width = found.work.size
            held = f", of which what else is in memory takes {size_in_words(besides)}" if besides else ""
            raise OutOfMemory(
                f"a picture of {width}x{height}",
                needed_bytes=found.smallest_bytes + besides,
                remedy=f"its budget is {size_in_words(budget)}{held}: allow more, or ask for a smaller picture",
            )
        economy = economy_of(found.work, rows)
        if economy != Economy():
            self._take(StepDown(unit=0, reason="to keep to the budget", economy=economy))

    def _planned(self, forward_rows: int = 0) -> tuple[Planned, int]:
        """What is planned for, and the rows of a forward without a budget. forward_rows: of the largest forward that
        the request was part of."""
        model, request = self._model, self._request
        unet, factor = model.require_unet(), model.require_vae().config.factor
        size = largest_size(request, unet.config.sample_size, factor)
        rows = self._limits.rows_over(max(1, size[0] * size[1] // factor**2), unet.device.type)
        branches = rows_of_picture(request, unet.config)
        asked = planned(
            model,
            size=size,
            batch=request.count,
            steps=request.step_count,
            branches=branches,
            adapters=request.all_adapters,
            bundled=self._manager.bundled,
            slots=self._manager.slots,
            rows=rows,
            shared_rows=self._shared_rows(forward_rows, rows, request.count * branches),
            regions=len(request.regions) if request.regions_by == "attention" else 0,
            fixed_graphs=self._runner.capabilities.fixed_shapes,
            copied=self._runner.capabilities.copies,
        )
        return asked, rows

    def _whole_bytes(self, forward_rows: int) -> int:
        """Of the process, without a budget. It is asked at each picture and at the end, and forecast once."""
        if forward_rows not in self._forecasts:
            self._forecasts[forward_rows] = self._planned(forward_rows)[0].forecast().process_bytes
        return self._forecasts[forward_rows]

    def _shared_rows(self, forward_rows: int, most: int, own: int) -> int:
        """What a forward computes at least: all rows that may share one where others did, and padding."""
        padded = self._limits.padded_to or 0
        if not forward_rows:
            return 0
        return max(padded, most if forward_rows > own else 0)

    def using(self, network: object) -> AbstractContextManager[None]:
        """Has a network in memory inside."""
        return self.keeper.using(network, self.economy)

    def unit_done(self, work: str) -> bool:
        """Counts a unit of work, and notes its peak. Returns whether the economy changes, as the course says."""
        self.note_peak(work)
        self.units += 1
        return self._keep_to_course()

    def note_peak(self, work: str) -> None:
        """Notes the peak of the unit of work that is being done."""
        peak = self.keeper.peak()
        if peak is not None:
            self._peaks[work] = max(peak, self._peaks.get(work, 0))

    def read_with_less(self, said: str) -> bool:
        """After reading prompts and pictures ran out of memory; returns whether there is anything left to do."""
        possible = self.keeper.possible(None, fewer_rows=False, chunks=False, merged=False)
        return self._go_on(read_with_less(self.economy, possible), f"reading the request ran out of memory ({said})")

    def draw_with_less(self, rows: Sequence[Row], said: str) -> bool:
        """After a forward of these rows ran out of memory."""
        possible = self.keeper.possible(
            rows[0].unet,
            fewer_rows=self._limits.padded_to is None,
            chunks=not self._runner.capabilities.fixed_shapes,
            merged=bool(rows[0].merged),
            attention=holds_scores(rows[0].unet.kernel),
            beside=networks_beside(rows),
        )
        less = drawn_with_less(self.economy, len(rows), possible)
        return self._go_on(less, f"a forward of {len(rows)} rows ran out of memory ({said})")

    def decode_with_less(self, latents: Latents, said: str) -> bool:
        """After decoding these latents ran out of memory."""
        vae = self._model.require_vae()
        possible = self.keeper.possible(vae, fewer_rows=False, chunks=False, merged=False)
        least, whole = decoding_range(vae, (latents.shape[2], latents.shape[3]))
        return self._go_on(
            decoded_with_less(self.economy, whole, least, possible), f"decoding ran out of memory ({said})"
        )

    def least_bytes(self) -> int | None:
        """What the request needs at least, of the whole process, as it is forecast."""
        with suppress(UndertowError):
            return self._planned()[0].plan(None, seconds=False).smallest_bytes + self.keeper.besides_bytes
        return None

    def report(self, forward_rows: int) -> MemoryReport:
        """forward_rows: of the largest forward that the request was part of."""
        options, tracker = self._options, self.keeper.tracker
        with suppress(UndertowError):  # what cannot be forecast is not worth an error
            whole = self._whole_bytes(forward_rows) + self.keeper.besides_bytes
            within = whole if options.budget_bytes is None else min(whole, options.budget_bytes)
            self._forecast_bytes = max(within, self._forecast_bytes or 0)
        return MemoryReport(
            peaks=dict(self._peaks),
            forecast_bytes=self._forecast_bytes,
            budget_bytes=options.budget_bytes,
            tensors_bytes=None if options.budget_bytes is None else tracker.peak_bytes,
            economy=self.economy,
            course=tuple(self._course),
            evictions=self.keeper.residency.evictions - self._evictions,
        )

    def _go_on(self, economy: Economy | None, reason: str) -> bool:
        if economy is None:
            return False
        self._take(StepDown(unit=self.units, reason=reason, economy=economy))
        return True

    def _keep_to_course(self) -> bool:
        due = [step for step in self._ahead if step.unit <= self.units]
        for step in due:
            self._ahead.remove(step)
            self._take(step)
        return bool(due)

    def _take(self, step: StepDown) -> None:
        self.economy = step.economy
        self._course.append(step)
        self._outcomes.gave_way(step)


def economy_of(work: Work, rows: int) -> Economy:
    """What is done for less memory in work as it is planned. rows: of a forward without a plan."""
    return Economy(
        evict_idle=work.keep != Work().keep,
        rows=None if work.rows is None or work.rows >= rows else work.rows,
        attention_in_parts=work.attention_in_parts,
        feed_forward_chunks=work.feed_forward_chunks,
        offloaded_layers=work.offloaded_layers,
        decode_bytes=work.decode_bytes,
    )
