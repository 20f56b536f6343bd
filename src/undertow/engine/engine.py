"""The engine: requests of any kind in, pictures out, one unit of work at a time."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from undertow.adapters.manager import AdapterManager
from undertow.checkpoints.read.model import LoadedModel
from undertow.doors import checked
from undertow.engine.computing import PLAIN, Computing
from undertow.engine.denoise import Batcher, Shared
from undertow.engine.events import Observer, Watcher, WorkEvent
from undertow.engine.fault import Rescue
from undertow.engine.fingerprint import Fingerprint, fingerprint_of
from undertow.engine.group import Group
from undertow.engine.handle import Handle
from undertow.engine.limits import BatchLimits
from undertow.engine.memory_of_request import MemoryOfRequest
from undertow.engine.options import RunOptions
from undertow.engine.outcomes import OutcomeLog, no_log
from undertow.engine.probing import ForwardProbe
from undertow.engine.request import GenerationRequest, as_request
from undertow.engine.request_run import Cancelled, RequestRun, Stage, Work
from undertow.errors import EngineClosed, InvalidInput, UndertowError
from undertow.memory.keeper import Keeper
from undertow.unet.runner import EAGER, Runner

logger = logging.getLogger(__name__)

PAUSE_S = 0.1
"""Before the engine's own thread goes on after an interruption, so that one that repeats takes no processor."""
ENCODE_S = 0.02
"""After so long of encoding, others take a step."""


class Engine:
    """Draws unlike requests together, in forwards that they share.

    Encoding, denoising and decoding are three kinds of work that take turns, so that decoding one picture, or reading
    an adapter, comes between two steps of the others. Every method may be called from any thread; work is done by one
    thread at a time: by the one that waits for a result, by the one that calls `run` or `step`, or by the engine's own
    (`start`). adapters: of the model; made here when `None`. runner: evaluates its networks. limits: how many rows
    share a forward, where a request's options do not say. memory: keeps the networks in memory, or within a budget.
    watchers: told of each unit of work, with its seconds; what they raise is logged. computing: how the model was
    loaded, for reports. `probes` look into forwards; add and remove them at any time.

        engine = Engine(model)
        handle = engine.submit(GenerationRequest(prompt="red apple on white background"))
        handle.result().images[0].save("apple.png")
    """

    @checked
    def __init__(
        self,
        model: LoadedModel,
        refiner: LoadedModel | None = None,
        adapters: AdapterManager | None = None,
        *,
        runner: Runner = EAGER,
        limits: BatchLimits | None = None,
        memory: Keeper | None = None,
        watchers: Sequence[Watcher] = (),
        computing: Computing = PLAIN,
    ):
        self.model = model
        self.refiner = refiner
        self.adapters = AdapterManager(model.require_unet(), model.text) if adapters is None else adapters
        self.limits = BatchLimits() if limits is None else limits
        self.runner = runner
        self.computing = computing
        if memory is None:
            caches = (self.adapters.library,)
            memory = Keeper(
                model,
                refiner,
                before_eviction=self.adapters.unmerge,
                caches=caches,
                counting=not runner.capabilities.fixed_shapes,
            )
        self.memory = memory
        memory.join(self.adapters.networks)
        self.watchers = list(watchers)
        self.probes: list[ForwardProbe] = []
        self._batcher = Batcher(self.adapters, runner, memory, self._shared, self.probes)
        self._encoding: deque[Group] = deque()
        self._decoding: deque[tuple[RequestRun, Work]] = deque()
        self._runs: list[RequestRun] = []
        self._submitted = 0
        self._turn = 0
        self._working = threading.Lock()  # held during a unit of work
        self._worker: int | None = None  # the thread that does it
        self._changed = threading.Condition()  # notified after each unit, and when requests come
        self._driver: int | None = None  # the thread that does one unit after the other
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def rescue(self) -> Rescue | None:
        """What finds out why a row's numbers are not finite, and computes it again; without it such a row fails with
        its origin alone."""
        return self._batcher.rescue

    @rescue.setter
    def rescue(self, rescue: Rescue | None) -> None:
        self._batcher.rescue = rescue

    @checked
    def submit(
        self,
        request: GenerationRequest | str,
        observer: Observer | None = None,
        *,
        options: RunOptions | None = None,
        latents: Tensor | None = None,
        outcomes: OutcomeLog | None = None,
    ) -> Handle:
        """Takes a request, or a prompt alone, which waits for its turn. observer: called at each step of each of its
        pictures, by the thread that works. latents: standard normal noise to start from, [count, channels, height /
        factor, width / factor], in place of that of the seeds. outcomes: a log of what the network
        answers; what it holds already is not computed again, and of the steps that it covers only the last is observed.
        Errors: `EngineClosed`, `InvalidInput`; what is wrong with the request itself is raised by `result()`."""
        return self.submit_together([request], [observer], options=options, latents=latents, outcomes=[outcomes])[0]

    @checked
    def fingerprint(
        self, request: GenerationRequest | str, *, options: RunOptions | None = None, latents: Tensor | None = None
    ) -> Fingerprint:
        """What decides the bits of a request's pictures here, for its log of outcomes. Arguments as in `submit`.
        Errors: those of `fingerprint.fingerprint_of`."""
        options = RunOptions() if options is None else options
        return fingerprint_of(
            as_request(request, **self.model.suggested),
            model=self.model,
            refiner=self.refiner,
            manager=self.adapters,
            runner=self.runner,
            limits=self._limits(options),
            non_finite=options.non_finite,
            latents=latents,
        )

    @checked
    def submit_together(
        self,
        requests: Sequence[GenerationRequest | str],
        observers: Sequence[Observer | None] | None = None,
        *,
        options: RunOptions | Sequence[RunOptions] | None = None,
        latents: Tensor | None = None,
        numbers: Sequence[int] | None = None,
        outcomes: Sequence[OutcomeLog | None] | None = None,
        apart: bool = False,
    ) -> list[Handle]:
        """Takes several requests at once: all are encoded before any is denoised, and what is wrong with one of them is
        raised for all. options: for all, or one for each. numbers: by which events and errors name them; the engine
        counts when `None`. outcomes: one for each, as in `submit`. apart: what is wrong with one is raised for it
        alone."""
        if not requests:
            return []
        given = RunOptions() if options is None else options
        chosen = [given] * len(requests) if isinstance(given, RunOptions) else given
        observers = [None] * len(requests) if observers is None else observers
        logs = [None] * len(requests) if outcomes is None else outcomes
        claimed: list[OutcomeLog] = []
        wrong: dict[int, Exception] = {}
        for index, (request, log, own) in enumerate(zip(requests, logs, chosen, strict=True)):
            try:
                claimed.append(
                    no_log() if log is None else log.claim(self.fingerprint(request, options=own, latents=latents))
                )
            except Exception as error:  # a log of something else, or a file that cannot be read any more
                if not apart:
                    raise
                claimed.append(no_log())
                wrong[index] = error
        numbers = range(self._submitted, self._submitted + len(requests)) if numbers is None else numbers
        with self._changed:
            if self._closed:
                raise EngineClosed
            runs = [
                self._new_run(number, as_request(request, **self.model.suggested), own, latents, observer, log)
                for number, request, own, observer, log in zip(
                    numbers, requests, chosen, observers, claimed, strict=True
                )
            ]
            for index, error in wrong.items():
                runs[index].fail(error)
            self._submitted += len(runs)
            self._runs += runs
            self._encoding.append(Group(runs=runs, apart=apart))
            self._changed.notify_all()
        return [Handle(self, run) for run in runs]

    def _new_run(
        self,
        number: int,
        request: GenerationRequest,
        options: RunOptions,
        latents: Tensor | None,
        observer: Observer | None,
        outcomes: OutcomeLog,
    ) -> RequestRun:
        limits = self._limits(options)
        memory = MemoryOfRequest(
            self.memory,
            self.model,
            request,
            options,
            limits=limits,
            manager=self.adapters,
            runner=limits.runner(self.runner),
            outcomes=outcomes,
        )
        return RequestRun(
            number=number,
            model=self.model,
            request=request,
            options=options,
            limits=limits,
            latents=latents,
            join=self._batcher.join,
            leave=self._batcher.leave,
            decode=self._queue_decoding,
            memory=memory,
            observers=[] if observer is None else [observer],
            outcomes=outcomes,
            probes=self.probes,
            runner=self.runner,
            computing=self.computing,
        )

    def _limits(self, options: RunOptions) -> BatchLimits:
        return self.limits if options.limits is None else options.limits

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._encoding or self._batcher.busy or self._decoding)

    @torch.inference_mode()
    def step(self) -> bool:
        """Does one unit of work: encodes parts of requests for a moment, denoises by one shared forward, or decodes a
        picture. Returns whether there was one. Errors: `InvalidInput` when called by an observer, inside a step."""
        self._refuse_inside("step()")
        with self._working:
            self._worker = threading.get_ident()
            try:
                self.memory.join(self.adapters.networks)  # another engine may have had them
                return self._work()
            finally:
                try:
                    self._settle()
                finally:
                    self._worker = None
                    self._notify()

    def run(self) -> None:
        """Works until there is nothing to do."""
        self.run_until(lambda: self.idle)

    @checked
    def run_until(self, reached: Callable[[], bool], timeout_s: float | None = None) -> None:
        """Works until a condition holds, or waits for it while another thread works. Errors: `TimeoutError`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not reached():
            self._refuse_inside("result()")
            try:
                if self._drives(reached, deadline):
                    while not reached():
                        if not self.step():
                            self._wait(reached, deadline)
                        _check(deadline)
            finally:  # wherever an interruption came
                if self._driver == threading.get_ident():
                    self._driver = None
                    self._notify()

    def start(self) -> None:
        """Starts a thread of the engine's own, which works until `close`. Errors: `EngineClosed`."""
        with self._changed:
            if self._closed:
                raise EngineClosed
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="undertow-engine", daemon=True)
                self._thread.start()

    def cancel(self, *runs: RequestRun) -> None:
        """Ends requests before their next step: at once when nobody works, else before the next unit of work."""
        runs = tuple(run for run in runs if not run.done)
        for run in runs:
            run.cancel()
        if runs and self._worker != threading.get_ident() and self._working.acquire(blocking=False):
            try:
                self._drop_cancelled()
                self._settle()
            finally:
                self._working.release()
            self._notify()

    def close(self) -> None:
        """Cancels what is not done, ends the engine's thread, and takes no more requests."""
        self._refuse_inside("close()")
        self._closed = True
        self._notify()
        if self._thread is not None:
            self._thread.join()
        with self._working:
            for run in self._runs:
                run.cancel()
            self._drop_cancelled()
            self._settle()
        self._notify()

    def __enter__(self) -> "Engine":
        """Starts the engine's thread."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def paused(self) -> Generator[None]:
        """Nothing else uses the model meanwhile: the next unit of work waits. Errors: `InvalidInput` inside a step."""
        self._refuse_inside("paused()")
        with self._working:
            self._worker = threading.get_ident()
            try:
                yield
            finally:
                self._worker = None

    def _work(self) -> bool:
        """The kinds of work take turns; a kind that has none passes on. Where networks come and go, a kind goes on
        until it has no more."""
        self._drop_cancelled()
        kinds = (self._encode, self._denoise, self._decode)
        for _ in kinds:
            kind, place = kinds[self._turn], self._turn
            self._turn = (self._turn + 1) % len(kinds)
            if kind():
                if self.memory.is_tight:
                    self._turn = place
                return True
        return False

    @contextmanager
    def _unit(self) -> Generator[None]:
        """Work inside is done within the budget; its peak is known afterwards."""
        self._govern()
        with self.memory.unit():
            yield

    def _govern(self) -> None:
        """The smallest budget of the requests counts for all, since they share the networks."""
        runs = [run for run in self._runs if not run.done]
        budgets = [run.memory.budget_bytes for run in runs if run.memory.budget_bytes is not None]
        self.memory.govern(min(budgets, default=None), sparing=any(run.options.low_vram for run in runs))

    def _encode(self) -> bool:
        """Parts of the encoding of those requests that have waited longest, for a moment: what is short does not wait
        for a step of others between any two of its parts, and joins the next one."""
        if not self._encoding:
            return False
        until = time.perf_counter() + ENCODE_S
        while self._encoding:
            with self._unit():
                self._encode_part(self._encoding[0])
            if time.perf_counter() >= until:
                break
        return True

    def _encode_part(self, group: Group) -> None:
        started = time.perf_counter()
        number = next((run.number for run in group.runs if run.stage is Stage.WAITING), None)
        try:
            encoded = group.encode(self.adapters, self.refiner)
        except UndertowError as error:  # something is wrong with the request
            self._encoding.popleft()
            for run in group.runs:
                run.fail(error)
            return
        if encoded:
            self._encoding.popleft()
            for run in group.runs:
                run.begin()
        elif number is not None:
            self._did(WorkEvent(kind="encode", seconds=time.perf_counter() - started, requests=(number,)))

    def _denoise(self) -> bool:
        if not self._batcher.busy:
            return False
        with self._unit():
            return self._batcher.step()

    def _decode(self) -> bool:
        if not self._decoding:
            return False
        with self._unit():
            (run, work), started = self._decoding.popleft(), time.perf_counter()
            size = run.cells
            work()
            seconds = time.perf_counter() - started
            self._did(WorkEvent(kind="decode", seconds=seconds, requests=(run.number,), size=size))
        return True

    def _shared(self, shared: Shared) -> None:
        """A forward is done."""
        latents, numbers = shared.rows[0].latents, tuple(dict.fromkeys(row.origin.request for row in shared.rows))
        asked = [run.request for run in self._runs if run.number in numbers]
        self._did(
            WorkEvent(
                kind="denoise",
                seconds=shared.seconds,
                requests=numbers,
                size=(latents.shape[2], latents.shape[3]),
                rows=len(shared.rows),
                computed_rows=shared.computed,
                adapted_rows=sum(row.adapters is not None and bool(row.adapters.inputs) for row in shared.rows),
                failed_rows=shared.failed,
                refiner=shared.rows[0].unet is not self.model.unet,
                probed=shared.probed,
                adapters=len({str(adapter.source) for request in asked for adapter in request.all_adapters}),
            )
        )

    def _did(self, event: WorkEvent) -> None:
        for watch in self.watchers:
            try:
                watch(event)
            except Exception:
                logger.exception("a watcher failed")

    def _queue_decoding(self, run: RequestRun, work: Work) -> None:
        self._decoding.append((run, work))

    def _settle(self) -> None:
        """Forgets what is done. When nothing is left, the U-Net's weights are its own again, bit for bit."""
        with self._changed:
            self._runs = [run for run in self._runs if not run.done]
            for group in [group for group in self._encoding if all(run.done for run in group.runs)]:
                self._encoding.remove(group)
        for waiting in [waiting for waiting in self._decoding if waiting[0].done]:
            self._decoding.remove(waiting)
        if self.idle:
            self.adapters.unmerge()

    def _serve(self) -> None:
        """What the engine's own thread does. An observer that ends its thread ends its request and nothing else."""
        while not self._closed:
            try:
                self.run_until(lambda: self._closed)
            except BaseException:
                logger.exception("a unit of work was interrupted; the engine goes on")
                time.sleep(PAUSE_S)

    def _drop_cancelled(self) -> None:
        for run in self._runs:
            if run.cancelled and not run.done:
                run.fail(Cancelled())

    def _drives(self, reached: Callable[[], bool], deadline: float | None) -> bool:
        """Makes this thread the one that works, unless another does, whose next unit of work it then waits for."""
        with self._changed:
            if reached():
                return False
            if self._driver is None:
                self._driver = threading.get_ident()
                return True
            self._changed.wait(_left(deadline))
        _check(deadline)
        return False

    def _wait(self, reached: Callable[[], bool], deadline: float | None) -> None:
        """Until there may be work again."""
        with self._changed:
            if self.idle and not reached():
                self._changed.wait(_left(deadline))

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _refuse_inside(self, call: str) -> None:
        if self._worker == threading.get_ident():
            raise InvalidInput(call, "called inside a unit of work", "a call outside of it", "let the observer return")


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _check(deadline: float | None) -> None:
    if deadline is not None and time.monotonic() > deadline:
        raise TimeoutError("the request is not done in the time that was given")
