"""Exports `emoji` and runs each file beside the network that it was made from: size, difference, seconds of a call.

One thread, interleaved, medians.

    python benchmarks/export.py [--repeats 15] [--model emoji]
"""

import argparse
import tempfile
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
from lib.timing import interleaved_medians

import undertow
from undertow.export.exporting import MODULES
from undertow.export.formats import FORMATS
from undertow.export.parts import Choices, Types, parts_of

CASES = (("torch-export", "f32"), ("onnx", "f32"), ("onnx", "f16"), ("openvino", "f32"), ("openvino", "f16"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--model", default="emoji")
    options = parser.parse_args()
    torch.set_num_threads(1)
    service = undertow.load(options.model, dtype=torch.float32)
    print("| format | type | file | MB | difference | seconds | eager | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for to, name in CASES:
            compare(service, to, name, Path(folder), options.repeats)


def compare(service: undertow.UNetService, to: str, name: str, folder: Path, repeats: int) -> None:
    dtype = getattr(torch, {"f32": "float32", "f16": "float16"}[name])
    written = undertow.export_model(service, to, folder / f"{to}-{name}", dtype=dtype)
    computed = torch.float32 if FORMATS[to].stores else dtype
    parts = parts_of(service.model, Choices(), Types(dtype=computed, stored=dtype))
    for part, made in zip(parts, written, strict=True):
        run = import_module(f"undertow.export.{MODULES[to]}").read(made.file, len(part.outputs))
        inputs = list(part.inputs.values())
        own = [one.float() if one.is_floating_point() else one for one in inputs]
        with torch.inference_mode():
            runs = {"file": partial(run, inputs), "eager": partial(part.reference, *own)}
            seconds = interleaved_medians(runs, repeats)
        ratio = seconds["file"] / seconds["eager"]
        print(
            f"| {to} | {name} | {part.name} | {made.bytes / 1e6:.1f} | {made.difference:.0e} | {seconds['file']:.4f} "
            f"| {seconds['eager']:.4f} | {ratio:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
