"""The formats that a model is exported to: what each needs, and what it cannot hold. Imports no torch, so that a name
is refused before anything slow is imported."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from undertow.errors import InvalidInput
from undertow.extras import require_packages
from undertow.lookup import look_up

ONNX_PACKAGES = {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"}
"""Modules, and the packages that they come with."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """suffix: of its files. types: of weights, as the command line calls them, the usual one first. lacks: why not the
    others. stores: the type is only that of the file, and what runs it computes in float32. extra, packages: what must
    be installed, see `extras`."""

    suffix: str
    types: tuple[str, ...]
    stores: bool = False
    lacks: Mapping[str, str] = field(default_factory=dict)
    extra: str = "export"
    packages: Mapping[str, str] = field(default_factory=dict)


FORMATS: Mapping[str, Format] = {
    "onnx": Format(
        suffix=".onnx",
        types=("f32", "f16"),
        lacks={"bf16": "ONNX Runtime has no convolution in bf16, so that nobody could check or run the file on a CPU"},
        packages=ONNX_PACKAGES,
    ),
    "openvino": Format(
        suffix=".xml",
        types=("f32", "f16"),
        lacks={"bf16": "OpenVINO decides when it compiles whether it computes in bf16 (INFERENCE_PRECISION_HINT)"},
        stores=True,
        extra="openvino",
        packages={"openvino": "openvino"},
    ),
    "torch-export": Format(suffix=".pt2", types=("f32", "f16", "bf16")),
    "web": Format(
        suffix=".js",
        types=("f16",),
        stores=True,
        lacks=dict.fromkeys(
            ("f32", "bf16"), "WebAssembly computes in f32, from weights that the page keeps in f16 to be small"
        ),
        packages=ONNX_PACKAGES,
    ),
}
"""By name."""


def find_format(name: str) -> Format:
    """The format called `name`, with the packages that it needs. Errors: `InvalidInput` with the nearest names,
    `MissingDependency` says what to install."""
    found = look_up(FORMATS, name, "to")
    require_packages(found.extra, found.packages)
    return found


def require_type(name: str, dtype: str | None) -> str:
    """The type of a format's weights: the one asked for, or the usual one. Errors: `InvalidInput` says why the format
    cannot hold it."""
    known = FORMATS[name]
    if dtype is None:
        return known.types[0]
    if dtype not in known.types:
        why = known.lacks.get(dtype, "it has no such type")
        raise InvalidInput("dtype", dtype, f"{' or '.join(known.types)} for {name}", why)
    return dtype
