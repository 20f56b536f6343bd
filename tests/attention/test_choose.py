"""The chooser as a table."""

from dataclasses import replace

import pytest
import torch

from undertow.attention import chosen
from undertow.attention.catalogue import KERNELS
from undertow.attention.choose import CHUNKED_KEYS, GRADIENT_KEYS, choose
from undertow.attention.kernel import Requirements

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize(
    ("device", "dtype", "keys", "float32_logits", "name"),
    [
        # bfloat16 on a CPU that has the instructions: see below for one that has not.
        ("cpu", BF16, 77, False, "chunked"),
        ("cpu", BF16, CHUNKED_KEYS, False, "chunked"),
        ("cpu", BF16, 4096, False, "chunked"),
        ("cpu", BF16, 77, True, "sdpa"),
        ("cpu", BF16, 4096, True, "sdpa"),
        ("cpu", F32, 77, False, "sdpa"),
        ("cpu", F32, 4096, False, "sdpa"),
        ("cpu", F16, 77, False, "sdpa"),
        ("cuda", BF16, 77, False, "sdpa"),
        ("cuda", F16, 4096, True, "sdpa"),
        ("mps", F16, 77, False, "sdpa"),
    ],
)
def test_choice(device, dtype, keys, float32_logits, name):
    choice = choose(Requirements(device=device, dtype=dtype, queries=1024, keys=keys, float32_logits=float32_logits))
    assert choice.name == name
    assert len(choice.reason) > 20


@pytest.mark.parametrize("keys", [1, 77, CHUNKED_KEYS, 4096])
def test_a_processor_that_imitates_bfloat16_takes_the_kernel_that_multiplies_in_float32(keys):
    """The chunked one takes twenty times as long there (benchmarks/attention.py)."""
    assert choose(Requirements(device="cpu", dtype=BF16, queries=1024, keys=keys, imitated=True)).name == "sdpa"


def test_a_processor_that_multiplies_in_tiles_takes_the_kernel_that_does():
    """The chunked one takes twice as long there (benchmarks/attention.py)."""
    assert choose(Requirements(device="cpu", dtype=BF16, queries=1024, keys=1024, amx=True)).name == "sdpa"


@pytest.mark.parametrize(("keys", "name"), [(GRADIENT_KEYS, "chunked"), (GRADIENT_KEYS + 1, "sdpa")])
def test_before_a_backward_pass_over_few_keys_no_tiles_are_worth_it(keys, name):
    """The fused kernel's backward pass has none (benchmarks/attention.py --gradient)."""
    call = Requirements(device="cpu", dtype=BF16, queries=1024, keys=keys, amx=True, gradient=True)
    assert choose(call).name == name


@pytest.mark.parametrize("keys", [CHUNKED_KEYS, CHUNKED_KEYS + 1])
def test_before_a_backward_pass_only_few_keys_are_written_out(keys):
    """All their scores are kept for it."""
    call = Requirements(device="cpu", dtype=BF16, queries=1024, keys=keys, gradient=True)
    assert choose(call).name == ("chunked" if keys == CHUNKED_KEYS else "sdpa")


@pytest.mark.parametrize("float32_logits", [False, True])
@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
@pytest.mark.parametrize("keys", [1, 1024, 5000])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_choice_satisfies_the_call(device, keys, dtype, float32_logits):
    requirements = Requirements(device=device, dtype=dtype, queries=1, keys=keys, float32_logits=float32_logits)
    entry = KERNELS[choose(requirements).name]
    assert entry.float32_logits or not float32_logits


@pytest.mark.parametrize(
    ("has_bfloat16", "has_amx", "float32_logits", "expected"),
    [
        (True, False, False, "chunked"),
        (True, True, False, "sdpa"),
        (True, False, True, "sdpa"),
        (False, False, False, "sdpa"),
        (False, False, True, "sdpa"),
    ],
)
def test_auto_runs_what_was_chosen(monkeypatch, has_bfloat16, has_amx, float32_logits, expected):
    """Each kernel of the catalogue replaced by one that says its name."""
    ran = []
    monkeypatch.setattr(chosen, "has_bfloat16", lambda: has_bfloat16)
    monkeypatch.setattr(chosen, "has_amx", lambda: has_amx)

    def spy(name):
        def kernel(query, key, value, mask=None):
            ran.append(name)
            return query

        return replace(KERNELS[name], kernel=kernel)

    for name in KERNELS:
        monkeypatch.setitem(KERNELS, name, spy(name))
    tensor = torch.zeros(1, 1, 4, 8, dtype=BF16)
    chosen.ChosenAttention(float32_logits=float32_logits)(tensor, tensor, tensor)
    assert ran == [expected]
