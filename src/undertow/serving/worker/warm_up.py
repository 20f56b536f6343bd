"""The first forwards of a model that was loaded: what they cost, by their number of rows, before any client waits."""

import logging
import time

from undertow.engine.limits import BatchLimits
from undertow.engine.options import RunOptions
from undertow.engine.request import GenerationRequest
from undertow.errors import UndertowError
from undertow.serving.clock.costs import Costs, best_rows
from undertow.serving.worker.models import Loaded

logger = logging.getLogger(__name__)

WARM_UP_S = 3.0
"""Nothing more is measured after so long; other sizes and row counts are learned from jobs."""
ROWS = (1, 2, 4, 8, 16, 32)
STEPS = 2


def warm_up(loaded: Loaded, costs: Costs, budget_s: float = WARM_UP_S) -> None:
    """Draws a picture of the model's own size in forwards of more and more rows, until more rows draw no more pictures
    a second. costs: learns from the engine meanwhile. What is known from an earlier time is not measured again."""
    started = time.monotonic()
    cells = (loaded.entry.trained_size // loaded.entry.subject.factor) ** 2
    if cells in costs.rows:
        return
    request = GenerationRequest(prompt="", steps=STEPS, guidance_scale=1.0)
    for rows in ROWS:
        expected_s = STEPS * costs.forward_s(cells, rows) if costs.known else 0.0
        if time.monotonic() - started + expected_s > budget_s:
            break
        try:
            options = RunOptions(limits=BatchLimits(padded_to=rows))
            loaded.engine.submit(request, options=options).result()
        except UndertowError as error:  # a model that needs a picture, or has no memory for so many rows
            logger.info("%s was not measured with %d rows: %s", loaded.entry.name, rows, error)
            break
        measured = {count: mean.seconds for count, mean in costs.forward.get(cells, {}).items()}
        if best_rows(measured) < rows:
            break
    costs.decide(cells)
    logger.info(
        "measured %s in %.1f s: %s",
        loaded.entry.name,
        time.monotonic() - started,
        ", ".join(f"{rows} rows {mean.seconds:.4f} s" for rows, mean in costs.forward.get(cells, {}).items()),
    )
