"""The kernel that networks are built with: what it takes, and what takes its place when it fails (R139)."""

import copy
import logging
from dataclasses import replace

import pytest
import torch

from undertow.attention.catalogue import KERNELS
from undertow.attention.chosen import ChosenAttention, auto_attention, kernel_named, kernel_notes
from undertow.attention.math import math_attention
from undertow.attention.policy import KERNEL_NAMES, AttentionPolicy
from undertow.errors import InvalidInput, MissingDependency


def inputs(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 2, 9, 8, generator=generator).to(dtype) for _ in range(3)]


@pytest.fixture
def broken(monkeypatch):
    """Makes kernels raise, and counts how often they were tried."""
    tried: list[str] = []

    def break_(name: str, error: Exception) -> list[str]:
        def kernel(query, key, value, mask=None):
            tried.append(name)
            raise error

        monkeypatch.setitem(KERNELS, name, replace(KERNELS[name], kernel=kernel))
        return tried

    return break_


def test_the_names_are_those_of_the_catalogue():
    assert tuple(KERNELS) == KERNEL_NAMES


@pytest.mark.parametrize("error", [RuntimeError("no kernel image is available\nsecond line"), ImportError("no nvrtc")])
def test_a_kernel_that_fails_is_replaced_and_reported_once(broken, error, caplog):
    tried = broken("flash", error)
    kernel = kernel_named("flash")
    assert kernel_notes(kernel) == ()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            torch.testing.assert_close(kernel(*inputs()), math_attention(*inputs()))
    assert tried == ["flash"], "what failed is not tried again for calls of this kind"
    first = str(error).splitlines()[0]
    assert kernel_notes(kernel) == (f"attention kernel flash failed ({first}); sdpa takes its place",)
    assert len(caplog.records) == 1
    kernel(*inputs(torch.bfloat16))
    assert tried == ["flash", "flash"], "another type may work"
    assert len(kernel_notes(kernel)) == 1, "the same is said once"


def test_the_next_but_one_is_taken_when_the_next_fails_too(broken):
    broken("flash", RuntimeError("a"))
    broken("sdpa", RuntimeError("b"))
    kernel = kernel_named("flash", float32_logits=True)
    torch.testing.assert_close(kernel(*inputs()), math_attention(*inputs()))
    assert [note.split()[2] for note in kernel_notes(kernel)] == ["flash", "sdpa"]
    assert all(note.endswith("math takes its place") for note in kernel_notes(kernel)), (
        "chunked keeps no float32 scores"
    )


def test_the_default_is_replaced_too(broken):
    broken("sdpa", RuntimeError("a"))
    kernel = ChosenAttention()
    torch.testing.assert_close(kernel(*inputs()), math_attention(*inputs()))
    assert "sdpa failed (a)" in kernel_notes(kernel)[0]


def test_running_out_of_memory_is_no_failure_of_a_kernel(broken):
    """The next would run out too, or take longer to; the engine makes smaller batches."""
    broken("sdpa", torch.OutOfMemoryError("CUDA out of memory"))
    kernel = ChosenAttention()
    with pytest.raises(torch.OutOfMemoryError):
        kernel(*inputs())
    assert kernel_notes(kernel) == ()


def test_when_every_kernel_fails_the_error_is_the_first_ones(broken):
    """Inputs that none takes, or a device that is lost."""
    for name, words in (("flash", "first"), ("sdpa", "second"), ("chunked", "third"), ("math", "fourth")):
        tried = broken(name, RuntimeError(words))
    kernel = kernel_named("flash")
    with pytest.raises(RuntimeError, match="first"):
        kernel(*inputs())
    assert tried == ["flash", "sdpa", "chunked", "math"]
    assert kernel_notes(kernel) == ()


def test_a_kernel_that_cannot_serve_a_call_says_what_does():
    """Named without a device, as in `kernel_named("cudnn")`; at load the device is known, and this is refused."""
    kernel = kernel_named("cudnn")
    torch.testing.assert_close(kernel(*inputs()), math_attention(*inputs()))
    assert kernel_notes(kernel) == ("attention kernel sdpa runs in place of cudnn: it runs on cuda only",)


@pytest.mark.parametrize("name", ["efficient", "cudnn", "xformers"])
def test_a_kernel_of_another_device_is_refused(name):
    with pytest.raises(InvalidInput, match=f"'{name}', expected a kernel that runs on cpu; use math or sdpa"):
        kernel_named(name, device="cpu")


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(MissingDependency, match=r"undertow\[xformers\]"):
        kernel_named("xformers", device="cuda")


def test_copies_of_a_network_share_the_kernel():
    assert copy.deepcopy({"kernel": auto_attention})["kernel"] is auto_attention


@pytest.mark.parametrize("name", ["auto", "speed", AttentionPolicy()])
def test_without_a_measurement_the_goal_speed_is_the_default(name):
    assert kernel_named(name) is auto_attention


@pytest.mark.parametrize("values", [{"goal": "fast"}, {"budget_bytes": -1}])
def test_impossible_policies_are_refused(values):
    with pytest.raises(InvalidInput):
        AttentionPolicy(**values)
