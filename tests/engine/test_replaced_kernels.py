"""A kernel that fails on this machine is named in the report of what was drawn without it (R139)."""

from dataclasses import replace

import undertow
from tests.services import pipeline_folder
from undertow.attention.catalogue import KERNELS


def test_the_report_says_which_kernel_was_replaced(monkeypatch):
    def broken(query, key, value, mask=None):
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setitem(KERNELS, "flash", replace(KERNELS["flash"], kernel=broken))
    service = undertow.load(pipeline_folder("sd1"), attention="flash")
    result = service.generate("red apple", steps=2, seed=0)
    (line,) = [decision for decision in result.report.decisions if "attention kernel" in decision]
    assert line.startswith("attention kernel flash failed (no kernel image")
    assert line.endswith("sdpa takes its place")
    assert len(result.images) == 1
