"""Cancel acts within two steps, while a worker runs as it does in a service."""

import threading
import time

from undertow.serving.jobs import JobState

STEP_S = 0.1
"""Of a step here: a wish is known within 0.02 s, whatever steps take."""


def test_a_cancel_acts_within_two_steps(place):
    id = place.submit(steps=150, rows=2)
    worker, stop, steps = place.worker(), threading.Event(), []

    def slow(event):
        if event.kind == "denoise":
            steps.append(time.time())
            time.sleep(STEP_S)

    worker.models.take("tiny").engine.watchers.append(slow)
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    try:
        while len(steps) < 3:
            time.sleep(0.01)
        place.store.cancel(id, "key")
        before = len(steps)
        while not place.store.job(id).state.is_final:
            time.sleep(0.01)
        assert len(steps) - before <= 2
        assert place.store.job(id).state is JobState.CANCELED
    finally:
        stop.set()
        thread.join()
