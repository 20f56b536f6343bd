"""What the processor can is asked of PyTorch, and everything that picks a type listens."""

import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file

import undertow
from tests.golden.pipelines import save_pipeline
from undertow import processor
from undertow.processor import IMITATED, computes, has_bfloat16, onednn_is_faster

OLDER = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
"""What makes oneDNN and PyTorch treat any x86 processor as one of AVX2 alone, a Zen 3 for example."""


@dataclass(frozen=True, kw_only=True)
class Case:
    onednn: bool
    capabilities: dict[str, object]
    has: bool


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(onednn=True, capabilities={"avx512_bf16": True}, has=True), id="Zen 4, Cooper Lake"),
        pytest.param(Case(onednn=True, capabilities={"avx512_bf16": False, "amx_bf16": True}, has=True), id="AMX"),
        pytest.param(Case(onednn=True, capabilities={"neon": True, "bf16": True}, has=True), id="Graviton 3"),
        pytest.param(Case(onednn=True, capabilities={"avx512_f": True, "avx512_bf16": False}, has=False), id="Skylake"),
        pytest.param(Case(onednn=False, capabilities={"avx2": True}, has=False), id="Zen 3"),
        pytest.param(Case(onednn=False, capabilities={"avx512_bf16": True}, has=False), id="limited by the variable"),
    ],
)
def test_bfloat16_needs_the_instructions_and_a_library_that_uses_them(case, monkeypatch):
    """oneDNN alone counts Skylake, whose AVX-512 imitates the type; the processor alone knows of no limit."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: case.onednn)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: case.capabilities)
    assert processor._has_bfloat16() == case.has


@pytest.mark.parametrize(
    ("capabilities", "variable", "has"),
    [
        ({"amx_bf16": True}, None, True),
        ({"amx_bf16": True}, "AVX512_CORE_BF16", False),
        ({"amx_bf16": True}, "avx512_core_fp16", False),
        ({"amx_bf16": True}, "ALL", True),
        ({"avx512_bf16": True}, None, False),
    ],
)
def test_tiles_need_the_processor_and_a_library_that_may_use_them(capabilities, variable, has, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if variable is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", variable)
    assert processor._has_amx() == has


@pytest.mark.parametrize(
    ("vendor", "libraries", "faster"),
    [
        ("AuthenticAMD", (True, True), True),
        ("GenuineIntel", (True, True), False),
        ("AuthenticAMD", (False, True), False),
        ("AuthenticAMD", (True, False), False),
    ],
)
@pytest.mark.parametrize("linux", [True, False])
def test_onednn_is_faster_on_amd_where_pytorch_has_both_libraries(
    vendor, libraries, faster, linux, monkeypatch, tmp_path
):
    info = tmp_path / "cpuinfo"
    if linux:
        info.write_text(f"processor : 0\nvendor_id : {vendor}\n", encoding="utf-8")
    monkeypatch.setattr(processor, "CPUINFO", info)
    monkeypatch.setattr(processor.platform, "processor", lambda: "other" if linux else f"AMD64 Family 25, {vendor}")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: libraries[0])
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: libraries[1])
    assert processor._onednn_is_faster() is faster


def test_a_newer_processor_can_stand_for_an_older_one():
    """What `make test` does to hold both kinds of processor on any machine."""
    command = [sys.executable, "-c", "from undertow.processor import has_bfloat16; print(has_bfloat16())"]
    said = subprocess.run(command, env=os.environ | OLDER, capture_output=True, text=True, check=True).stdout
    assert said.strip() == "False"


def test_the_processor_is_asked_once(monkeypatch):
    asked = []
    for name, question in (("_has_bfloat16", has_bfloat16), ("_onednn_is_faster", onednn_is_faster)):
        monkeypatch.setattr(processor, name, lambda name=name: asked.append(name) or True)
        assert question()
        assert question()
    assert asked == ["_has_bfloat16", "_onednn_is_faster"]


def test_importing_asks_nothing():
    command = """
import undertow.nn.matmul, undertow.attention.choose, undertow.processor
print(undertow.processor._once.cache_info().currsize)
"""
    said = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "0"


@pytest.mark.parametrize("has", [True, False])
def test_types_that_a_cpu_computes(has, monkeypatch):
    monkeypatch.setattr(processor, "has_bfloat16", lambda: has)
    types = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    assert [computes(dtype, "cpu") for dtype in types] == [True, True, has, False]
    assert all(IMITATED[dtype] for dtype in types if not computes(dtype, "cpu"))


@pytest.mark.parametrize(
    ("present", "has", "expected"), [(True, True, True), (True, False, False), (False, False, True)]
)
def test_an_old_gpu_imitates_bfloat16_too(present, has, expected, monkeypatch):
    """And one that is not there is no reason to change a plan that is made for it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has or including_emulation)
    assert computes(torch.bfloat16, "cuda") == expected
    assert computes(torch.float16, "cuda")


@pytest.mark.parametrize("asked_for", [True, False])
def test_a_bfloat16_model_draws_in_float32_where_the_processor_imitates_it(asked_for, tmp_path, monkeypatch):
    """The same picture as of the same weights in float32, and the report says why."""
    folder = save_pipeline("sd1", tmp_path / "pipeline")
    for part in () if asked_for else ("unet", "vae", "text_encoder"):
        store_in_bfloat16(folder / part)
    monkeypatch.setattr(processor, "has_bfloat16", lambda: False)
    service = undertow.load(folder, dtype=torch.bfloat16 if asked_for else None)
    text = service.model.require_text().encoders[0]
    assert {service.unet.dtype, service.vae.dtype, text.dtype} == {torch.float32}
    result = service.generate("red apple", steps=2, guidance_scale=5.0)
    assert any("bfloat16 weights compute in float32" in note for note in result.report.decisions)
    if not asked_for:
        exact = undertow.load(folder, dtype=torch.float32)
        assert torch.equal(result.latents, exact.generate("red apple", steps=2, guidance_scale=5.0).latents)


def test_each_network_is_asked_for_itself(tmp_path, monkeypatch):
    """A text encoder in bfloat16 beside a U-Net in float32."""
    folder = save_pipeline("sd1", tmp_path / "pipeline")
    store_in_bfloat16(folder / "text_encoder")
    monkeypatch.setattr(processor, "has_bfloat16", lambda: False)
    model = undertow.load(folder).model
    assert model.require_text().encoders[0].dtype == torch.float32
    assert len([note for note in model.report.notes if "bfloat16 weights compute in float32" in note]) == 1


def store_in_bfloat16(folder):
    [file] = folder.glob("*.safetensors")
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in load_file(file).items()}, file)
