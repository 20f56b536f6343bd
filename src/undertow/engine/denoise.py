"""Denoising: generators of many pictures, whose rows share forwards, and who join and leave at every step."""

import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from undertow.adapters.manager import AdapterManager
from undertow.engine.fault import Rescue, Rescued
from undertow.engine.forward import forward
from undertow.engine.kept_text import KeptText
from undertow.engine.limits import BatchLimits
from undertow.engine.options import NonFinite
from undertow.engine.probing import ForwardProbe, HiddenNumbers, OwnForwards, attach, forget
from undertow.engine.rows import Outcome, Row, Steps, attributed, networks_beside
from undertow.engine.watch import non_finite, non_finite_at
from undertow.errors import InvalidInput
from undertow.memory.keeper import Keeper
from undertow.memory.ladder import Economy
from undertow.shortage import is_out_of_memory
from undertow.unet.conditioning import Ports
from undertow.unet.runner import EAGER, Runner

PATIENCE = 16
"""Forwards with the weights as they are, at most, while rows that need others merged wait."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shared:
    """A forward. rows: that shared it. computed: rows, with those it was padded with. failed: without an outcome.
    probed: whether something looked into it."""

    rows: Sequence[Row]
    computed: int
    failed: int
    seconds: float
    probed: bool


@dataclass(frozen=True, kw_only=True)
class Share:
    """One picture's part in a forward: its seconds, in proportion to its rows, and the rows of the whole batch."""

    seconds: float
    rows: int


@dataclass(kw_only=True, eq=False)
class Task:
    """A generator that is being advanced.

    done: called with its result. failed: called with what it raised; others go on. shared: called for each forward
    that it had part in. non_finite: what is done where numbers are not finite, as in `RunOptions`. rescued: told
    what came of such a row. looks_inside: whether queries and keys are looked at where that takes a forward out of
    its graph. less: called when a forward ran out of memory, with its rows and what was said; returns whether
    `economy` asks for less from now on. recorded: the outcomes of rows that need no forward, `None` for the others.
    answered: called with the place of a row among those that it waits for, and its outcome. least_bytes: that its
    request needs at least, as it is forecast.
    """

    steps: Steps[Tensor]
    done: Callable[[Tensor], None]
    failed: Callable[[BaseException], None]
    shared: Callable[[Share], None] = lambda share: None
    limits: BatchLimits = BatchLimits()
    non_finite: NonFinite = "fail"
    rescued: Callable[[Rescued], None] = lambda rescued: None
    looks_inside: bool = False
    less: Callable[[Sequence[Row], str], bool] = lambda rows, said: False
    economy: Economy = Economy()
    recorded: Callable[[Sequence[Row]], Sequence[Outcome | None]] = lambda rows: [None] * len(rows)
    answered: Callable[[int, Outcome], None] = lambda place, outcome: None
    least_bytes: Callable[[], int | None] = lambda: None
    rows: list[Row] = field(default_factory=list, init=False)
    """The rows that it waits for."""
    answers: list[Outcome | None] = field(default_factory=list, init=False)
    """The outcomes that have come for them."""


@dataclass(frozen=True)
class Waiting:
    """One row that a task waits for."""

    task: Task
    index: int

    @property
    def row(self) -> Row:
        return self.task.rows[self.index]

    @property
    def key(self) -> Hashable:
        """Equal for rows that can share a forward."""
        shape = None if self.task.limits.padded_to is None else self.row.shape
        return self.row.key, shape, self.task.limits, self.task.economy

    @property
    def most_rows(self) -> int:
        """Of the forward that it is in."""
        most, economy = self.task.limits.most_rows(self.row.latents), self.task.economy
        return most if economy.rows is None else min(most, economy.rows)


class Batcher:
    """Advances tasks by forwards that they share. Tasks join and leave between two steps, also from within a task.

    manager: of the adapters in the rows; `None` where there are none. runner: evaluates the networks. memory: has them
    in memory while they are evaluated. shared: told of each forward. probes: look into forwards; may change meanwhile.
    `rescue` is asked where numbers are not finite; without it the row fails.
    """

    def __init__(
        self,
        manager: AdapterManager | None = None,
        runner: Runner = EAGER,
        memory: Keeper | None = None,
        shared: Callable[[Shared], None] = lambda shared: None,
        probes: Sequence[ForwardProbe] = (),
    ) -> None:
        self.shared = shared
        self.rescue: Rescue | None = None
        self.probes = probes
        self.manager = manager
        self.runner = runner
        self.memory = Keeper() if memory is None else memory
        self._tasks: list[Task] = []
        self._text = KeptText()
        self._overtaken = 0

    @property
    def busy(self) -> bool:
        return bool(self._tasks)

    def join(self, task: Task) -> None:
        """Adds a task, which runs to its first evaluation now and takes part from the next step on."""
        self._tasks.append(task)
        self._advance(task, None)

    def leave(self, task: Task) -> None:
        """Removes a task and closes its generator."""
        if task in self._tasks:
            self._remove(task)
            task.steps.close()

    def _remove(self, task: Task) -> None:
        self._tasks.remove(task)
        if not self._tasks:
            self._text.forget()

    def step(self) -> bool:
        """One forward, for the row that has waited longest and as many others as can share it. Pictures whose
        evaluations are complete go on to their next. Returns whether there was a row."""
        batch = self._next_batch()
        if not batch:
            return False
        started = time.perf_counter()
        outcomes = self._outcomes(batch)
        if outcomes is None:
            return True
        seconds = (time.perf_counter() - started) / len(batch)
        self.shared(_shared(batch, outcomes, seconds * len(batch), self.probes))
        for waiting, outcome in zip(batch, outcomes, strict=True):
            outcome = self._checked(waiting, outcome)
            failure = self._answer(waiting, outcome) if isinstance(outcome, Outcome) else outcome
            if failure is not None:
                self._fail(waiting.task, failure)
        for task, rows in Counter(waiting.task for waiting in batch).items():
            task.shared(Share(seconds=seconds * rows, rows=len(batch)))
            answers = [answer for answer in task.answers if answer is not None]
            if task in self._tasks and len(answers) == len(task.rows):
                self._end_turn(task)
                self._advance(task, answers)
        return True

    def run(self) -> None:
        """Steps until no task is left."""
        while self.step():
            pass

    def _next_batch(self) -> list[Waiting]:
        """The row that has waited longest, and those that can share its forward. Rows whose adapters are merged into
        the weights already go first, since merging others takes time, but not for ever: where requests keep coming,
        those with other weights would never get their turn."""
        line = _in_order(
            [Waiting(task, i) for task in self._tasks for i, answer in enumerate(task.answers) if answer is None]
        )
        if not line:
            return []
        first = next((waiting for waiting in line if self._is_prepared(waiting.row)), line[0])
        if first is line[0] or self._overtaken == PATIENCE:
            first, self._overtaken = line[0], 0
        else:
            self._overtaken += 1
        key, most = first.key, first.most_rows
        batch: list[Waiting] = []
        for waiting in line:
            if len(batch) == most:
                break
            if waiting.key == key and self._fits(batch, waiting):
                batch.append(waiting)
        return batch

    def _fits(self, batch: Sequence[Waiting], another: Waiting) -> bool:
        """Whether there are slots for the adapters of one row more."""
        return self.manager is None or self.manager.fits([one.row for one in (*batch, another)])

    def _end_turn(self, task: Task) -> None:
        """Sends the first place that the task's request holds to the end of the line, so that rows of every key get
        their turn. `_in_order` gives that place to the request's first picture."""
        number = task.rows[0].origin.request
        place = next(one for one in self._tasks if one.rows and one.rows[0].origin.request == number)
        self._tasks.remove(place)
        self._tasks.append(place)

    def _answer(self, waiting: Waiting, outcome: Outcome) -> Exception | None:
        """Gives a task the outcome of a row; returns what went wrong when it was recorded."""
        try:
            waiting.task.answered(waiting.index, outcome)
        except Exception as error:
            return error
        waiting.task.answers[waiting.index] = outcome
        return None

    def _checked(self, waiting: Waiting, outcome: Outcome | Exception) -> Outcome | Exception:
        """An outcome whose numbers are finite, unless the task keeps others, or why there is none."""
        task, row, how = waiting.task, waiting.row, waiting.task.non_finite
        refused = isinstance(outcome, InvalidInput)  # as networks refuse inputs that are not finite
        if how == "keep" or not (refused or (isinstance(outcome, Outcome) and not outcome.finite)):
            return outcome
        hidden = isinstance(outcome, Outcome) and bool(outcome.prediction.isfinite().all())
        try:
            found = None if self.rescue is None else self.rescue(row, how, hidden, partial(self._again, waiting))
        except Exception as error:
            return error if is_out_of_memory(error) else attributed(error, row.origin)
        if found is None:
            if not isinstance(outcome, Outcome):
                return outcome
            return replace(outcome, finite=True) if hidden else non_finite(row, outcome.prediction)
        task.rescued(found)
        return non_finite_at(found.fault) if found.outcome is None else found.outcome

    def _again(self, waiting: Waiting, probe: ForwardProbe) -> Outcome:
        """The outcome of a row alone, in as many rows as before, with a probe attached."""
        row, task, economy = waiting.row, waiting.task, waiting.task.economy
        with self._drawing([row], economy), ExitStack() as until:
            probes = [one for one in self.probes if not isinstance(one, OwnForwards)]
            forget(probes, [row])
            attach(probes, [row], EAGER, until)
            until.enter_context(probe.attached(row.unet, [row]))
            return forward([row], self.manager, task.limits.padded_to, EAGER, _parts(economy))[0]

    def _advance(self, task: Task, answers: Sequence[Outcome] | None) -> None:
        """Sends a task the outcomes that it waited for, and those that are recorded of what it asks next."""
        try:
            while answers is None or len(answers) == len(task.rows):
                task.rows = list(task.steps.send(answers))  # pyright: ignore[reportArgumentType]
                task.answers = list(task.recorded(task.rows))
                answers = [answer for answer in task.answers if answer is not None]
        except StopIteration as finished:
            self._remove(task)
            task.done(finished.value)
        except BaseException as error:  # of one picture, which must not end the others
            self._fail(task, error)
            if not isinstance(error, Exception):
                raise

    def _fail(self, task: Task, error: BaseException) -> None:
        if task in self._tasks:
            self.leave(task)
            task.failed(error)

    def _is_prepared(self, row: Row) -> bool:
        """Whether the weights are those that the row needs already."""
        return self.manager is None or self.manager.is_prepared(row)

    def _outcomes(self, batch: Sequence[Waiting]) -> list[Outcome | Exception] | None:
        """The outcome of each row, or why it has none; `None` when memory ran out and a request that they come
        from gave way, so that the rows wait for another forward."""
        found = self._forward(batch)
        if isinstance(found, list):
            return found
        if is_out_of_memory(found) and self._asks_for_less(batch, str(found)):
            return None
        return self._in_halves(batch, found)

    def _in_halves(self, batch: Sequence[Waiting], failure: Exception) -> list[Outcome | Exception]:
        """When a forward raises (an adapter, a kernel), it is tried again in halves, down to single rows: only a row
        that fails alone fails. The error names where the row comes from, and what was done to need less memory."""
        if len(batch) == 1:
            task = batch[0].task
            least = task.least_bytes() if is_out_of_memory(failure) else None
            return [attributed(failure, batch[0].row.origin, str(task.economy), least)]
        half = len(batch) // 2
        outcomes: list[Outcome | Exception] = []
        for part in (batch[:half], batch[half:]):
            found = self._forward(part)
            outcomes += found if isinstance(found, list) else self._in_halves(part, found)
        return outcomes

    def _forward(self, batch: Sequence[Waiting]) -> list[Outcome | Exception] | Exception:
        """The outcomes of rows that share a forward, or what it raised. Of running out of memory that comes without its
        traceback, whose frames hold tensors."""
        rows, task, economy = [waiting.row for waiting in batch], batch[0].task, batch[0].task.economy
        usual, inside = task.limits.runner(self.runner), HiddenNumbers()
        if usual.capabilities.copies and economy != Economy():
            usual = EAGER  # weights come and go while the network runs, and nobody copies those that are not there
        probes = [*self.probes, inside] if self._looks_inside(batch, usual) else self.probes
        try:
            with self._drawing(rows, economy), ExitStack() as until:
                runner = attach(probes, rows, usual, until)
                kept = self._text if self._keeps_text(rows, economy, usual) else None
                if kept is None:
                    self._text.forget()
                outcomes = forward(rows, self.manager, task.limits.padded_to, runner, _parts(economy), kept)
            finite = inside.rows(len(rows))
            if not all(finite) or not all(one.finite for one in outcomes):
                self._text.forget()  # whose numbers would not be looked at again
            return [one if sound else replace(one, finite=False) for one, sound in zip(outcomes, finite, strict=True)]
        except Exception as error:
            self._text.forget()
            forget(self.probes, rows)
            return error.with_traceback(None) if is_out_of_memory(error) else error

    def _drawing(self, rows: Sequence[Row], economy: Economy) -> AbstractContextManager[None]:
        """The networks of a forward are in memory inside."""
        return self.memory.drawing(rows[0].unet, economy, merged=bool(rows[0].merged), beside=networks_beside(rows))

    def _keeps_text(self, rows: Sequence[Row], economy: Economy, runner: Runner) -> bool:
        """Not in graphs, which would have them as inputs, nor under the eyes of probes, which expect every layer to
        run, nor where memory is short."""
        may = runner.capabilities
        seen = any(probe.wants(rows) for probe in self.probes)
        return not may.fixed_shapes and economy == Economy() and not seen

    def _looks_inside(self, batch: Sequence[Waiting], runner: Runner) -> bool:
        """Queries and keys are looked at where kernels may hide what half precision does to them: on a CPU, outside
        graphs."""
        unet = batch[0].row.unet
        half = unet.dtype in (torch.float16, torch.bfloat16) and unet.device.type == "cpu"
        kept = all(waiting.task.non_finite == "keep" for waiting in batch)
        return not kept and (
            any(waiting.task.looks_inside for waiting in batch) or (half and runner.capabilities.observable)
        )

    def _asks_for_less(self, batch: Sequence[Waiting], said: str) -> bool:
        """Lets every request in a batch give way, once; returns whether one did."""
        of_request = {waiting.row.origin.request: waiting.task for waiting in batch}
        rows = [waiting.row for waiting in batch]
        gave_way = [task.less(rows, said) for task in of_request.values()]
        return any(gave_way)


def _shared(
    batch: Sequence[Waiting],
    outcomes: Sequence[Outcome | Exception],
    seconds: float,
    probes: Sequence[ForwardProbe],
) -> Shared:
    padded_to = batch[0].task.limits.padded_to
    rows = [waiting.row for waiting in batch]
    return Shared(
        rows=rows,
        computed=len(batch) if padded_to is None else max(padded_to, len(batch)),
        failed=sum(not isinstance(outcome, Outcome) for outcome in outcomes),
        seconds=seconds,
        probed=any(probe.wants(rows) for probe in probes),
    )


def _parts(economy: Economy) -> Ports:
    """In how many parts layers compute."""
    return Ports(feed_forward_chunks=economy.feed_forward_chunks, attention_in_parts=economy.attention_in_parts)


def _in_order(line: Sequence[Waiting]) -> list[Waiting]:
    """The line with the first pictures of each request in the places that its pictures hold. Of a request that is
    larger than a forward, some are then finished, and can be kept, while others have not begun."""
    waiting: dict[int, list[Waiting]] = {}
    for one in line:
        waiting.setdefault(one.row.origin.request, []).append(one)
    ordered = {number: iter(sorted(ones, key=lambda one: one.row.origin.picture)) for number, ones in waiting.items()}
    return [next(ordered[one.row.origin.request]) for one in line]
