"""The first forwards of a model that was loaded: what they cost, by their number of rows, before any client waits."""

import logging
import time
from dataclasses import replace
from pathlib import Path

from undertow.adapters.adapter import Adapter
from undertow.engine.events import WorkEvent
from undertow.engine.limits import BatchLimits
from undertow.engine.options import RunOptions
from undertow.engine.request import GenerationRequest
from undertow.errors import UndertowError
from undertow.serving.clock.costs import Costs, best_rows
from undertow.serving.worker.models import Loaded

logger = logging.getLogger(__name__)

WARM_UP_S = 4.0
"""Nothing more is measured after so long, of the thread's own time on a CPU; other sizes and row counts are learned
from jobs. Making a graph does not count."""
GRAPHS_S = 300.0
"""But after so long, with all that was made, nothing more is."""
ROWS = (1, 2, 4, 8, 16, 32)
STEPS = 4
"""Forwards of each number of rows, of which the fastest counts: what is decided must not depend on what else the
machine does at this moment."""


class Fastest:
    """Of the forwards of each number of rows. in_own_thread: PyTorch computes on a CPU, and the time of the thread
    counts, in which other processes and threads have no part."""

    def __init__(self, *, in_own_thread: bool):
        self.seconds: dict[int, float] = {}
        self._in_own_thread = in_own_thread
        self._before = time.thread_time()

    def __call__(self, event: WorkEvent) -> None:
        now = time.thread_time()
        seconds, self._before = now - self._before if self._in_own_thread else event.seconds, now
        if event.kind == "denoise":
            rows = event.computed_rows
            self.seconds[rows] = min(seconds, self.seconds.get(rows, seconds))


def warm_up(loaded: Loaded, costs: Costs, budget_s: float = WARM_UP_S, lora: Path | None = None) -> None:
    """Draws a picture of the model's own size in forwards of more and more rows, until more rows draw no more pictures
    a second. costs: learns from the engine meanwhile. What is known from an earlier time is not measured again. lora:
    by which is measured what rows with adapters take longer."""
    cells = (loaded.entry.trained_size // loaded.entry.subject.factor) ** 2
    if cells in costs.rows:
        return
    request = GenerationRequest(prompt="", steps=STEPS, guidance_scale=1.0)
    own = loaded.service.model.require_unet().device.type == "cpu" and loaded.entry.backend != "openvino"
    began, spent_s, fastest = time.monotonic(), 0.0, Fastest(in_own_thread=own)
    loaded.engine.watchers.append(fastest)
    for rows in ROWS:
        expected_s = STEPS * min((rows / count * seconds for count, seconds in fastest.seconds.items()), default=0.0)
        if spent_s + expected_s > budget_s or time.monotonic() - began > GRAPHS_S:
            break
        try:
            options = RunOptions(limits=BatchLimits(padded_to=rows))
            loaded.engine.submit(request, options=options).result()
        except UndertowError as error:  # a model that needs a picture, or has no memory for so many rows
            logger.info("%s was not measured with %d rows: %s", loaded.entry.name, rows, error)
            break
        spent_s += STEPS * fastest.seconds.get(rows, 0.0)
        if best_rows(fastest.seconds) < rows:
            break
    loaded.engine.watchers.remove(fastest)
    best = costs.decide(cells, fastest.seconds)
    for rows in sorted({2, best}):
        expected_s = STEPS * costs.forward_s(cells, rows)
        if lora is None or spent_s + expected_s > budget_s or time.monotonic() - began > GRAPHS_S:
            break
        spent_s += expected_s
        try:
            adapted = replace(request, adapters=(Adapter(str(lora)),), count=rows)
            options = RunOptions(limits=BatchLimits(padded_to=rows))  # for which nothing is made in the background
            loaded.engine.submit(adapted, options=options).result()
        except UndertowError as error:
            logger.info("%s was not measured with %s: %s", loaded.entry.name, lora.name, error)
            break
    logger.info(
        "measured %s in %.1f s: %s",
        loaded.entry.name,
        time.monotonic() - began,
        ", ".join(f"{rows} rows {seconds:.4f} s" for rows, seconds in fastest.seconds.items()),
    )
