"""How many threads of the processor a worker computes in, when it draws on the CPU.

PyTorch takes all cores for itself. Threads of one product wait for each other: where the API, another worker or other
programs want a core too, every product waits for the thread that has none, and a step takes many times as long as in
one thread. So a core is left to the others, and workers share the rest.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from undertow.serving.settings import ServerSettings

LEFT = 1
"""Cores that workers leave to the API and to others."""
QUOTA = Path("/sys/fs/cgroup/cpu.max")
VARIABLE = "OMP_NUM_THREADS"
CPU = "cpu"


def threads_of_worker(
    settings: ServerSettings,
    device: str,
    *,
    cores: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> int | None:
    """`None` where PyTorch's own number stays: on other devices, and where the environment says one. cores: those that
    this process may use when `None`."""
    if device != CPU:
        return None
    if settings.threads is not None:
        return settings.threads
    if environment.get(VARIABLE):
        return None
    workers = sum(one == CPU for one in settings.devices)
    return max(1, ((usable_cores() if cores is None else cores) - LEFT) // max(1, workers))


def usable_cores(quota: Path = QUOTA) -> int:
    """Those that this process may run on, or as many as its container may use the time of."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        most, period = quota.read_text(encoding="ascii").split()
        return count if most == "max" else max(1, min(count, int(most) // int(period)))
    except (OSError, ValueError):
        return count
