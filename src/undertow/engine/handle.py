"""What a caller holds of a request that an engine draws: its result, its events, and the means to end it."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from undertow.doors import checked
from undertow.engine.events import StepEvent
from undertow.engine.request_run import RequestRun, Stage
from undertow.engine.result import GenerationResult
from undertow.errors import InvalidInput

if TYPE_CHECKING:
    from undertow.engine.engine import Engine


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a request is. step: of the picture that is furthest, over all passes, of which there are `steps`; 0 of 0
    until the request is encoded."""

    stage: Stage
    step: int
    steps: int


class Handle:
    """A request in an engine.

    `result()` waits for the pictures; in a coroutine, `await handle` does. Where no other thread runs the engine, the
    first runs it itself, and the second starts the engine's own thread.
    """

    def __init__(self, engine: "Engine", run: RequestRun):
        self._engine = engine
        self._run = run

    @property
    def number(self) -> int:
        """The request's number in its engine, which its events and errors name."""
        return self._run.number

    @property
    def done(self) -> bool:
        """Whether `result()` would return, or raise, at once."""
        return self._run.future.done()

    @property
    def progress(self) -> Progress:
        return Progress(stage=self._run.stage, step=self._run.step, steps=self._run.steps)

    @checked
    def result(self, timeout_s: float | None = None) -> GenerationResult:
        """The finished pictures; a cancelled request has none, and the latents that it had reached.

        Errors: what the request met on its way; `TimeoutError` after `timeout_s` seconds, and the request goes on when
        the engine next works.
        """
        self._engine.run_until(self._run.future.done, timeout_s)
        return self._run.future.result(timeout=0)

    def result_or_none(self) -> GenerationResult | None:
        """The finished pictures, if they are there."""
        future = self._run.future
        return future.result() if future.done() and future.exception() is None else None

    def cancel(self) -> None:
        """Ends the request before its next step. Other requests go on."""
        self._engine.cancel(self._run)

    def events(self) -> "Events":
        """The steps of its pictures from now on, to be iterated once, by `for` or by `async for`."""
        return Events(self._engine, self._run)

    def __await__(self) -> Generator[None, None, GenerationResult]:
        self._engine.start()
        # Shielded: a coroutine that stops waiting does not take the result from others.
        return asyncio.shield(asyncio.wrap_future(self._run.future)).__await__()


class Events:
    """The steps of a request's pictures, as they come, until it is done."""

    def __init__(self, engine: "Engine", run: RequestRun):
        self._engine = engine
        self._run = run
        self._waiting: deque[StepEvent] = deque()
        self._wake: Callable[[], object] = lambda: None
        self._claimed = False
        run.observers.append(self._put)
        run.future.add_done_callback(lambda _: self._wake())

    def __iter__(self) -> Generator[StepEvent]:
        """Runs the engine meanwhile, unless another thread does."""
        self._claim()
        try:
            while self._waiting or not self._run.future.done():
                if self._waiting:
                    yield self._waiting.popleft()
                else:
                    self._engine.run_until(lambda: bool(self._waiting) or self._run.future.done())
        finally:
            self._unsubscribe()

    async def __aiter__(self) -> AsyncGenerator[StepEvent]:
        """Starts the engine's own thread."""
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(news.set)
            except RuntimeError:  # the loop was closed: nobody listens any more
                self._unsubscribe()

        self._claim()
        self._wake = wake
        self._engine.start()
        try:
            while self._waiting or not self._run.future.done():
                if self._waiting:
                    yield self._waiting.popleft()
                    continue
                await news.wait()
                news.clear()
        finally:
            self._unsubscribe()

    def _put(self, event: StepEvent) -> None:
        self._waiting.append(event)
        self._wake()

    def _claim(self) -> None:
        if self._claimed:
            raise InvalidInput("events", "iterated a second time", "one iteration", "call events() for each")
        self._claimed = True

    def _unsubscribe(self) -> None:
        """Who stopped iterating keeps neither events nor a loop that may be closed by now."""
        self._wake = lambda: None
        if self._put in self._run.observers:
            self._run.observers.remove(self._put)
        self._waiting.clear()
