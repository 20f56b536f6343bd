"""GGUF files: read as the package `gguf` dequantizes them, drawn from, and refused by name where they are something
else."""

import struct
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import undertow
from tests.checkpoints.gguf_files import entry, header, text, value, write_gguf
from tests.checkpoints.pipelines import save_pipeline
from undertow.checkpoints.files.gguf_header import ENCODINGS
from undertow.checkpoints.files.model_file import open_model_file
from undertow.checkpoints.identify.identification import identify
from undertow.checkpoints.identify.outline import outline
from undertow.checkpoints.report import report_on
from undertow.checkpoints.write.convert import convert
from undertow.cli import main
from undertow.errors import (
    CheckpointError,
    CorruptFile,
    DamagedWeights,
    MissingDependency,
    UnknownCheckpoint,
    UnsupportedModel,
)
from undertow.limits import HEADER_BYTES, NAME_LENGTH, TENSORS

KINDS = [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q5_1, Kind.Q5_0, Kind.Q4_1, Kind.Q4_0]
LINEAR = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_q.weight"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """A single file of a tiny SD1 pipeline."""
    root = tmp_path_factory.mktemp("gguf")
    return convert(save_pipeline(root / "folder", "sd1"), root / "model.safetensors", "ldm")


@pytest.fixture(scope="module")
def described(pipeline) -> dict[str, str]:
    """What the header of that file says of its networks, whose widths nobody publishes."""
    with safe_open(pipeline, framework="pt") as file:
        return file.metadata()


@pytest.fixture(scope="module")
def quantized(pipeline, described, tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """The same pipeline in Q8_0, and its numbers."""
    path = tmp_path_factory.mktemp("gguf") / "model-q8_0.gguf"
    return path, write_gguf(path, load_file(pipeline), Kind.Q8_0, metadata=described)


def test_the_table_of_types_is_ggmls():
    for number, known in ENCODINGS.items():
        kind = Kind(number)
        assert known.name == kind.name
        assert (known.numbers, known.block_bytes) == gguf.GGML_QUANT_SIZES[kind]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_numbers_are_those_of_the_package(kind, tmp_path):
    """Also of more blocks than are dequantized at a time."""
    torch.manual_seed(int(kind))
    tensors = {"many": torch.randn(8, 33_000 - 33_000 % 32), "conv": torch.randn(5, 6, 3, 3), "bias": torch.randn(7)}
    expected = write_gguf(tmp_path / "file.gguf", tensors, kind)
    weights = open_model_file(tmp_path / "file.gguf")
    assert {name: info.shape for name, info in weights.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    for name, tensor in weights.each(list(tensors)):
        assert torch.equal(tensor.float(), expected[name]), name
    packed = weights.tensors["many"].packed
    assert (None if packed is None else packed.name) == (kind.name if kind.name.startswith("Q") else None)
    assert weights.tensors["bias"].packed is None


@pytest.mark.parametrize("kind", [one for one in ENCODINGS.values() if one.kind is None], ids=lambda one: one.name)
def test_every_type_is_read_as_the_package_reads_it(kind, tmp_path):
    """Of some the package has no quantizer: their bytes are drawn."""
    data = np.random.default_rng(0).integers(0, 256, (3, 2 * kind.block_bytes), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "file.gguf", "sd1")
    writer.add_tensor("a", data, raw_dtype=Kind[kind.name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(data, Kind[kind.name])
    np.testing.assert_array_equal(open_model_file(tmp_path / "file.gguf").read("a").numpy(), expected)


def test_a_pipeline_draws_what_its_dequantized_weights_draw(pipeline, described, quantized, tmp_path):
    path, numbers = quantized
    save_file(numbers, tmp_path / "plain.safetensors", metadata=described)
    pictures = [
        undertow.load(file, dtype=torch.float32).generate("an owl", steps=1, seed=3, size=(32, 32)).latents
        for file in (path, tmp_path / "plain.safetensors")
    ]
    assert torch.equal(pictures[0], pictures[1])
    exact = load_file(pipeline)[LINEAR]
    assert 0 < (numbers[LINEAR] - exact).norm() / exact.norm() < 0.01


def test_the_asked_precision_is_rounded_to_once(quantized):
    path, numbers = quantized
    for dtype in (torch.float32, torch.bfloat16, None):
        weight = undertow.load_unet(path, dtype=dtype).state_dict()[
            "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q.weight"
        ]
        assert torch.equal(weight, numbers[LINEAR].to(torch.float16 if dtype is None else dtype))


def test_names_without_prefix_and_convolutions_in_rows(pipeline, described, tmp_path):
    """As ComfyUI-GGUF writes a U-Net alone."""
    prefix = "model.diffusion_model."
    unet = {name.removeprefix(prefix): one for name, one in load_file(pipeline).items() if name.startswith(prefix)}
    path = tmp_path / "unet.gguf"
    numbers = write_gguf(path, unet, Kind.Q4_0, metadata=described, architecture="sd1", rows=256)
    weight = undertow.load_unet(path, dtype=torch.float32).state_dict()["down_blocks.0.resnets.0.conv1.weight"]
    assert torch.equal(weight, numbers["input_blocks.1.0.in_layers.2.weight"])
    report = report_on(path)
    assert report.identification.family == "sd1"
    assert {packed.name for packed in report.packed()} == {"Q4_0"}


def test_inspect_says_types_and_bits(quantized, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    path, numbers = quantized
    assert main(["inspect", str(path), "--validate-weights"]) == 0
    said = capsys.readouterr().out
    packed = report_on(path).packed()
    share = sum(packed.values()) / sum(tensor.numel() for tensor in numbers.values())
    assert 0.05 < share < 0.95
    assert f"Q8_0 {share:.1%} (8.5 bits each); {1 - share:.1%} are not" in " ".join(said.split())
    assert "(sd1, " in said


def test_it_is_written_as_safetensors_and_outlined(quantized, tmp_path):
    path, numbers = quantized
    written = load_file(convert(path, tmp_path / "out.safetensors", "ldm", dtype=torch.float32))
    assert torch.equal(written[LINEAR], numbers[LINEAR])
    assert load_file(convert(path, tmp_path / "half.safetensors", "ldm"))[LINEAR].dtype == torch.float16
    assert outline(str(path)).family == "sd1"
    assert outline(str(path)).stored == "F16"


def test_damage_inside_a_quantized_tensor_is_named(quantized, tmp_path):
    path, _ = quantized
    data = bytearray(path.read_bytes())
    [file] = open_model_file(path).files
    begin = file._header.places[LINEAR].begin  # pyright: ignore
    data[begin : begin + 2] = struct.pack("<e", float("nan"))
    (tmp_path / "bad.gguf").write_bytes(data)
    with pytest.raises(DamagedWeights, match=r"attn2\.to_q\.weight: NaN: 32/"):
        undertow.load_unet(tmp_path / "bad.gguf")


def test_without_the_package_quantized_files_say_what_to_install(quantized, pipeline, described, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingDependency, match=r"'gguf': pip install 'undertow\[gguf\]'"):
        undertow.load_unet(quantized[0])
    assert identify(quantized[0]).family == "sd1"


BAD: dict[str, tuple[bytes, type[CheckpointError], str]] = {
    "nothing in it": (header(), UnknownCheckpoint, "holds no tensors"),
    "version": (header(version=9), UnknownCheckpoint, "version 9; undertow reads 2 and 3"),
    "big-endian": (b"GGUF\0\0\0\x03" + bytes(16), UnknownCheckpoint, "big-endian"),
    "only the magic": (b"GGUF", CorruptFile, "cut off in its GGUF header: 4 bytes"),
    "tensors": (header(tensors=2**63), CorruptFile, f"tensors; {TENSORS.usual:,} are allowed"),
    "keys": (header(keys=2**63), CorruptFile, "entries of metadata; 50,000 are allowed"),
    "a long name": (
        header(entry("x" * (NAME_LENGTH.usual + 1), (1,), 0)),
        CorruptFile,
        "name of 1,001 bytes; 1,000 are",
    ),
    "a long text": (
        header(values=(text("k") + struct.pack("<IQ", 8, HEADER_BYTES.usual + 1),)),
        CorruptFile,
        "16,777,216 are allowed",
    ),
    "a long array": (
        header(values=(text("k") + struct.pack("<IIQ", 9, 12, 2**60),)),
        CorruptFile,
        "16,777,216 are allowed",
    ),
    "an array of arrays": (header(values=(text("k") + struct.pack("<IIQ", 9, 9, 1),)), CorruptFile, "unknown type 9"),
    "a value of no type": (header(values=(text("k") + struct.pack("<I", 99),)), CorruptFile, "unknown type 99"),
    "text that is none": (header(values=(text(b"\xff\xfe") + bytes(9),)), CorruptFile, "not UTF-8"),
    "alignment": (header(values=(value("general.alignment", "0"),)), CorruptFile, "alignment of '0'"),
    "quantization": (header(entry("a", (32,), 31)) + bytes(99), UnknownCheckpoint, "quantization type 31; undertow"),
    "dimensions": (header(entry("a", (1,) * 5, 0)) + bytes(99), CorruptFile, "5 dimensions"),
    "blocks": (header(entry("a", (33, 2), 8)) + bytes(99), CorruptFile, "2x33 numbers, which are no blocks of Q8_0"),
    "no numbers": (header(entry("a", (0, 2), 0)) + bytes(99), CorruptFile, "no blocks of F32"),
    "huge": (header(entry("a", (2**62, 2**62), 0)) + bytes(99), CorruptFile, "its tensors need"),
    "far away": (header(entry("a", (1,), 0, offset=2**63)) + bytes(99), CorruptFile, "its tensors need"),
    "over another": (
        header(entry("a", (8,), 0), entry("b", (8,), 0, offset=16)) + bytes(99),
        CorruptFile,
        "'b' begins inside",
    ),
    "twice": (header(entry("a", (1,), 0), entry("a", (1,), 0, offset=32)) + bytes(99), CorruptFile, "occurs twice"),
    "another shape": (
        header(
            entry("a", (8,), 0),
            values=(text("comfy.gguf.orig_shape.a") + struct.pack("<IIQii", 9, 5, 2, -2, -4),),
        )
        + bytes(99),
        CorruptFile,
        "said to be -2x-4, and it has 8 numbers",
    ),
    "llama": (
        header(values=(value("general.architecture", "llama"), value("tokenizer.ggml.model", "gpt2")), keys=99),
        UnsupportedModel,
        r"a language model \(llama\)",
    ),
    "t5": (
        header(entry("token_embd.weight", (1,), 0), values=(value("general.architecture", "t5encoder"),)) + bytes(99),
        UnsupportedModel,
        r"a language model \(t5encoder\)",
    ),
    "layers of a language model": (
        header(entry("blk.0.attn_q.weight", (1,), 0)) + bytes(99),
        UnsupportedModel,
        "a language model in a GGUF",
    ),
    "flux": (header(values=(value("general.architecture", "flux"),)), UnsupportedModel, "this is FLUX"),
    "sd3 of stable-diffusion.cpp": (
        header(entry("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", (1,), 0)) + bytes(99),
        UnsupportedModel,
        "this is Stable Diffusion 3",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_named(name, tmp_path):
    content, error, message = BAD[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        identify(path)
    assert type(caught.value) is error
    assert caught.value.path == path


def test_a_truncated_file_is_refused_before_anything_is_loaded(quantized, tmp_path):
    path, _ = quantized
    for size in (12, 40, 5_000, path.stat().st_size - 40):
        (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:size])
        with pytest.raises(CorruptFile, match=r"cut off|not a whole GGUF file"):
            undertow.load_unet(tmp_path / "cut.gguf")


def test_a_file_that_changes_while_it_is_read_is_refused(quantized, tmp_path):
    path = tmp_path / "model.gguf"
    for changed, message in ((b"GGUF", "became shorter"), (None, "changed while it was read")):
        path.write_bytes(quantized[0].read_bytes())
        with pytest.raises(CorruptFile, match=message):
            _read_while_it_changes(path, path.read_bytes() + bytes(8) if changed is None else changed)


def _read_while_it_changes(path: Path, content: bytes) -> None:
    with open_model_file(path).reader() as read:
        path.write_bytes(content)
        read(LINEAR)
