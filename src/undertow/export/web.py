"""A page that draws in a browser (docs/decisions/014-browser.md): files that need no server and ask no other host.

Networks are ONNX, run by ONNX Runtime's WebAssembly. Each file is a script that hands over its bytes in base64, because
a page that was opened from a disk may load scripts and fetch nothing. The runtime is packed; weights in float16 would
hardly become smaller, and unpacking them takes a second.
"""

import base64
import json
from importlib.resources import files
from pathlib import Path

import torch

from undertow.checkpoints.read.model import LoadedModel
from undertow.errors import InvalidInput
from undertow.export.parts import Choices, Part, Types, parts_of
from undertow.export.web_model import page_model, require_drawable

PAGE = "page"
"""In this package: the page itself and the runtime, which `make page` built from page/try."""

RUNTIME = "runtime.wasm.gz"

DRAWN_WITH = ("text_encoder", "unet", "vae_decoder")
"""The parts that the page needs."""

MOST_BYTES = 40_000_000
"""Of the folder: what people wait for, and free hosts of pages take."""


def require_page(model: LoadedModel, choices: Choices) -> None:
    """Errors: `InvalidInput` for choices that a page has no use for, and for a model that is too large; as
    `require_drawable`."""
    idle = {
        "dynamic": choices.dynamic,
        "controlnet": choices.controlnet,
        "reference_tokens": choices.reference_tokens,
        "lora_rank": choices.lora_rank,
    }
    for name in (name for name, given in idle.items() if given):
        raise InvalidInput(name, idle[name], "nothing for a page", "it draws from text, at one size; use --to onnx")
    require_drawable(model)
    networks = (model.require_unet(), model.require_vae().decoder, *model.require_text().encoders)
    weights = 2 * sum(weight.numel() for network in networks for weight in network.parameters())
    least = (weights + len(_built(RUNTIME))) * 4 // 3
    if least > MOST_BYTES:
        expected = f"at most {MOST_BYTES // 10**6} MB for a page"
        raise InvalidInput("model", f"{model.path.name}, a page of {least / 1e6:,.0f} MB", expected, "use --to onnx")


def page_parts(model: LoadedModel, choices: Choices) -> list[Part]:
    """The parts that a page needs, for one row at a time."""
    types = Types(dtype=torch.float32, stored=torch.float16)
    one = Choices(size=choices.size, rows=1)
    return [part for part in parts_of(model, one, types) if part.name in DRAWN_WITH]


def write_page(model: LoadedModel, parts: list[Part], folder: Path) -> None:
    """Writes everything but the networks."""
    height, width = (parts[0].inputs["latents"].shape[axis] * model.require_vae().config.factor for axis in (2, 3))
    known = json.dumps(page_model(model, (height, width)), ensure_ascii=False, separators=(",", ":"))
    (folder / "model.js").write_text(f"(window.undertow ??= {{ bytes: {{}} }}).model = {known};\n", encoding="utf-8")
    for name in ("index.html", "try.css", "try.js"):
        (folder / name).write_bytes(_built(name))
    _write_bytes(folder / "runtime.js", _built(RUNTIME))


def pack(onnx: Path, script: Path) -> None:
    """Writes a network as the script that the page loads."""
    _write_bytes(script, onnx.read_bytes())


def _write_bytes(script: Path, content: bytes) -> None:
    text = base64.b64encode(content).decode("ascii")
    line = f'(window.undertow ??= {{ bytes: {{}} }}).bytes["{script.stem}"] = "{text}";\n'
    script.write_text(line, encoding="ascii")


def _built(name: str) -> bytes:
    return (files("undertow.export") / PAGE / name).read_bytes()
