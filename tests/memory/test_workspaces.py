"""Workspaces of kernels, by family of processors: beside what was measured on each, on whatever this runs."""

import pytest

from undertow.memory import machine
from undertow.memory.families import family
from undertow.memory.forecast import forecast
from undertow.memory.machine import Machine
from undertow.memory.work import Work
from undertow.memory.workspaces import batched_bytes, conv_bytes, grouped_conv_bytes, product_bytes

AMX = Machine(amx=True, float16=True, onednn=False)
AVX512 = Machine()

# What torch.profiler shows on an Intel Xeon (Sapphire Rapids) with torch 2.13, one thread, 2026-11-29.
CONVOLUTIONS = {
    (1, 4, 64, 20, 13, 3, 1): 55832,
    (1, 16, 16, 240, 144, 3, 1): 111128,
    (1, 32, 32, 116, 96, 3, 1): 149528,
    (1, 64, 64, 9, 35, 3, 1): 213016,
    (1, 64, 64, 48, 128, 3, 1): 294936,
    (2, 64, 64, 25, 35, 3, 2): 344088,
    (1, 96, 96, 36, 76, 3, 1): 354328,
    (1, 128, 128, 36, 29, 3, 1): 933912,
    (2, 128, 320, 128, 20, 3, 2): 2244632,
    (2, 256, 128, 44, 28, 3, 1): 1425408,
    (2, 960, 320, 11, 12, 3, 1): 6291480,
    (1, 960, 64, 33, 128, 3, 1): 3391512,
    (1, 640, 64, 16, 16, 3, 2): 2039832,
    (1, 640, 640, 128, 128, 3, 1): 9240600,
    (1, 2560, 1280, 32, 32, 3, 1): 70815768,
    (1, 3, 1280, 224, 224, 14, 14): 106912000,
}
PRODUCTS = {
    (1, 320, 1280): 46080,
    (14, 11520, 640): 740352,
    (36, 32, 160): 16384,
    (77, 1024, 640): 82688,
    (130, 4608, 1280): 791168,
    (220, 2880, 192): 1111040,
    (315, 16, 512): 37888,
    (400, 1280, 320): 825344,
    (400, 5120, 1280): 1898624,
    (1024, 2560, 640): 3732608,
    (1024, 1280, 10240): 1152000,
    (2048, 160, 5120): 824320,
    (2048, 5120, 1280): 4822144,
    (8192, 2560, 640): 22082688,
}
BATCHED = {(16, 231, 231): 144384, (77, 154, 80): 16384, (256, 231, 160): 103424}
FLOAT16 = {(64, 64, 64): 50304, (240, 1440, 160): 1446016, (400, 640, 640): 1066624, (400, 5120, 1280): 1607296}


@pytest.mark.parametrize(("signature", "taken"), CONVOLUTIONS.items(), ids=str)
def test_a_convolution_of_amx_takes_at_most_so_much(signature, taken):
    rows, inputs, outputs, height, width, kernel, stride = signature
    bound = conv_bytes(AMX, "bfloat16", 2, (rows, inputs, height, width), outputs, kernel, stride)
    assert taken <= bound < 1.2 * taken + 2**17


@pytest.mark.parametrize(("signature", "taken"), PRODUCTS.items(), ids=str)
def test_a_product_of_amx_takes_at_most_so_much(signature, taken):
    assert taken <= product_bytes(AMX, "bfloat16", 2, *signature) < 2 * taken + 2**20


@pytest.mark.parametrize(("signature", "taken"), BATCHED.items(), ids=str)
def test_a_batched_product_of_amx_takes_at_most_so_much(signature, taken):
    assert taken <= batched_bytes(AMX, "bfloat16", 2, *signature, transposed=True) < 2 * taken


@pytest.mark.parametrize(("signature", "taken"), FLOAT16.items(), ids=str)
def test_a_product_in_float16_takes_at_most_so_much(signature, taken):
    assert taken <= product_bytes(AMX, "float16", 2, *signature) < 2 * taken


@pytest.mark.parametrize(
    ("x", "entries", "taken"),
    [((2, 64, 19, 24), 8, 225304), ((4, 256, 19, 24), 16, 2564120), ((1, 2560, 2, 1), 32, 2154776)],
    ids=str,
)
def test_rows_as_groups_of_one_convolution_take_at_most_so_much(x, entries, taken):
    bound = grouped_conv_bytes(AMX, "bfloat16", 2, x, entries, 3)
    assert taken <= bound < 1.3 * taken
    assert grouped_conv_bytes(AVX512, "bfloat16", 2, x, entries, 3) < bound


def test_only_bfloat16_goes_to_amx_and_only_amd_s_float32_to_onednn():
    x = (2, 64, 24, 24)
    assert conv_bytes(AMX, "float32", 4, x, 64, 3, 1) == conv_bytes(AVX512, "float32", 4, x, 64, 3, 1)
    assert conv_bytes(AMX, "float16", 2, x, 64, 3, 1) == conv_bytes(AVX512, "bfloat16", 2, x, 64, 3, 1)
    assert product_bytes(AMX, "float32", 4, 64, 64, 64) == 0 < product_bytes(AVX512, "float32", 4, 64, 64, 64)
    assert conv_bytes(Machine(device="cuda", amx=True), "bfloat16", 2, x, 64, 3, 1) == 0


def test_a_forecast_is_that_of_its_machine():
    """At 104x112 pixels the peak is a convolution."""

    def taken(one, dtype):
        work = Work(size=(104, 112), tokens=231, dtype=dtype, kernel="sdpa")
        return forecast(family("sd15"), work, one).stage("denoise").activation_bytes

    assert taken(AMX, "bfloat16") > taken(AVX512, "bfloat16")
    assert taken(AMX, "float32") <= taken(AVX512, "float32")


INTEL = "vendor_id : GenuineIntel\nflags : fpu avx512_bf16 amx_bf16 avx512_fp16 amx_tile\n"


@pytest.mark.parametrize(
    ("said", "most", "expected"),
    [
        (INTEL, "", AMX),
        (INTEL, "AVX512_CORE_FP16", Machine(float16=True, onednn=False)),
        (INTEL, "avx512_core_bf16", Machine(onednn=False)),
        (INTEL, "AVX2_VNNI", Machine(bfloat16=False, onednn=False)),
        ("vendor_id : AuthenticAMD\nflags : fpu avx512_bf16\n", "", AVX512),
    ],
)
def test_a_processor_says_what_it_can_and_may(said, most, expected, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(said)
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", most)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert machine.this_machine.__wrapped__() == expected
