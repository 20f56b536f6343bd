"""How soon a worker that was killed draws again.

    OMP_NUM_THREADS=1 python -m benchmarks.serving.restart --kills 7 --page docs/results/serving.md

A service in processes of its own draws one long picture with `emoji`. Its worker is killed (`kill -9`) in the middle,
again and again; the time is taken from the kill until the next worker has done a step that the one before had not.
What the supervisor needs, the start of a process and the imports are in it, and so is the loading of the model, which
the worker's log tells. On a machine that does other work, too, the time on the clock says little: the processor's time
of the new process until then is told beside it.
"""

import argparse
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from benchmarks.serving.disturbed import Service
from recipes.emoji.sections import find_section, replace_section
from undertow.serving.store.records import WorkerInfo
from undertow.serving.worker.supervisor import HEALTHY_S

STEPS = 200
MORE_S = 5.0
"""Than the loading of the model, asked for."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=7)
    parser.add_argument("--machine", default="", help="for the page")
    parser.add_argument("--page", type=Path, help="replace its section `restart`")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="undertow-restart-") as folder:
        service = Service(data=Path(folder, "data"), log=Path(folder, "log"))
        service.start()
        try:
            found = [killed(service, index) for index in range(options.kills)]
        finally:
            service.stop()
        loads = [float(one) for one in re.findall(r"loaded emoji in ([\d.]+) s", service.log.read_text())][1:]
    away, computed = [one for one, _ in found], [one for _, one in found]
    beyond = sorted(took - load for took, load in zip(away, loads, strict=True))
    command = f"`python -m benchmarks.serving.restart --kills {options.kills}`"
    content = (
        f"{command}, {time.strftime('%Y-%m-%d')}{options.machine and ', '}{options.machine}.\n\n"
        f"- from `kill -9` of a worker to the next one's first own step: median {median(away):.1f} s, at most "
        f"{max(away):.1f} s\n"
        f"- of that the loading of the model: median {median(loads):.1f} s; the rest: median {median(beyond):.1f} s, "
        f"at most {beyond[-1]:.1f} s ({MORE_S:.0f} s are asked for)\n"
        f"- processor time of the new process until then, with imports and loading: median {median(computed):.1f} s"
    )
    sys.stdout.write(f"{content}\n")
    if options.page is not None:
        page = options.page.read_text()
        if find_section(page, "restart") is None:
            raise SystemExit(f"{options.page} has no section `restart`")
        options.page.write_text(replace_section(page, "restart", content))


def killed(service: Service, index: int) -> tuple[float, float]:
    """Kills the worker inside a picture; seconds until the next one has done a step of its own, on the clock and of its
    process."""
    time.sleep(HEALTHY_S + 1)  # one that dies earlier is started again after a longer pause, as what cannot live
    wanted = {"prompt": "red apple", "steps": STEPS, "seed": index, "reuse": False}
    answer = until(lambda: posted(f"{service.address}/v1/jobs", wanted))
    id = answer["id"]
    until(lambda: service.store.job(id).progress.step >= 5)
    worker: WorkerInfo = until(lambda: next((one for one in service.store.workers.list() if one.state == "busy"), None))
    reached, at = service.store.job(id).progress.step, time.time()
    os.kill(worker.pid, signal.SIGKILL)

    def goes_on() -> bool:
        job = service.store.job(id)
        return job.worker not in (None, worker.name) and job.progress.step > reached + 1

    until(goes_on)
    took = time.time() - at
    (again,) = [one for one in service.store.workers.list() if one.name == service.store.job(id).worker]
    times = Path(f"/proc/{again.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    computed = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
    httpx.post(f"{service.address}/v1/jobs/{id}/cancel", timeout=60)
    until(lambda: service.store.job(id).state.is_final)
    return took, computed


def posted(url: str, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The answer; `None` as long as nobody answers."""
    try:
        return httpx.post(url, json=wanted, timeout=60).raise_for_status().json()
    except httpx.HTTPError:
        return None


def until(found: Callable[[], Any], timeout_s: float = 300.0) -> Any:
    """What `found` returns as soon as that is true."""
    end = time.monotonic() + timeout_s
    while not (value := found()):
        if time.monotonic() > end:
            raise SystemExit("it took too long: see the log of the service")
        time.sleep(0.02)
    return value


if __name__ == "__main__":
    main()
