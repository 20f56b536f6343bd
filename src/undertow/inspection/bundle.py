"""A departure as a folder that can be sent to others, and replayed on another machine.

`bundle.json` says what was compared, with what, on which machine; `tensors.safetensors` holds the inputs of the failing
step, what the module received, what the two made of it, and the module's weights where they are small.
"""

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undertow.checkpoints.files.atomic import read_json, write_text
from undertow.checkpoints.files.weights import open_weights, write_tensors
from undertow.doors import checked
from undertow.engine.request import GenerationRequest
from undertow.errors import CorruptFile, InvalidInput, UndertowError, UnknownCheckpoint
from undertow.inspection.departure import Comparison, Departure, finite
from undertow.inspection.departure_findings import Caught
from undertow.inspection.departure_runs import Drawing
from undertow.inspection.departure_tape import Evidence, Forced, Tape, listening, modules_of, relative_error
from undertow.unet.conditioning import Conditioning, Ports

FORMAT, VERSION = "undertow.departure", 2

DESCRIPTION, TENSORS = "bundle.json", "tensors.safetensors"

AGAIN = "write it again: undertow diff A B --bundle FOLDER"

SAID = "description_sha256"
"""In the metadata of the tensors, see `_said`."""

NEEDED = ("departure", "recomputed", "tolerance", "request", "sides", "sha256")

SETTINGS: Mapping[str, tuple[str, ...]] = {
    "Linear": (),
    "Conv2d": ("stride", "padding", "dilation", "groups"),
    "GroupNorm": ("num_groups", "eps"),
    "LayerNorm": ("normalized_shape", "eps"),
}
"""Modules that are computed from their weights and these attributes alone."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What a folder holds. description: `bundle.json`."""

    folder: Path
    description: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def module(self) -> str:
        return str(self.description["departure"]["module"])

    @property
    def is_self_contained(self) -> bool:
        """Whether the weights that it needs are in it."""
        return bool(self.description["recomputed"]["kind"])

    def tensor(self, name: str) -> Tensor:
        """Errors: `CorruptFile`."""
        if name not in self.tensors:
            raise CorruptFile(self.folder / TENSORS, f"{name} is missing", "copy the folder again")
        return self.tensors[name]

    def side(self, which: str) -> Mapping[str, Any]:
        """What is said of "a" or "b". Errors: `CorruptFile`."""
        found = self.description["sides"].get(which)
        if not isinstance(found, dict) or "source" not in found:
            raise CorruptFile(self.folder / DESCRIPTION, f"nothing of side {which} in it", "copy the folder again")
        return found

    @property
    def request(self) -> GenerationRequest:
        """Errors: `InvalidInput` for a picture that has moved."""
        return GenerationRequest.from_json(self.description["request"])


@dataclass(frozen=True, kw_only=True)
class Replay:
    """then, now: the module's error where the bundle was written, and here. by: what computed it. tolerance: of the
    comparison. a, b: how far each side's output here is from what was stored."""

    module: str
    then: float | None
    now: float
    tolerance: float
    by: str
    a: float
    b: float

    @property
    def reproduced(self) -> bool:
        """Whether the module departs here, too."""
        return self.now > self.tolerance

    def sentence(self) -> str:
        said = "reproduced" if self.reproduced else "not reproduced here"
        then = "numbers that are not finite" if self.then is None else f"{self.then:.2g}"
        return (
            f"{said}: {self.module} departs by {self.now:.2g} {self.by}, by {then} where the bundle was written "
            f"(tolerance {self.tolerance:.2g}); A's output is within {self.a:.2g} of the stored one, B's within "
            f"{self.b:.2g}"
        )


@torch.inference_mode()
def write_bundle(
    folder: Path,
    comparison: Comparison,
    caught: Caught,
    request: GenerationRequest,
    sides: Mapping[str, Mapping[str, Any]],
) -> None:
    """Writes a departure. caught: of `diff.compare`. request: A's. sides: what is said of "a" and "b"."""
    departure, evidence, forward = caught.departure, caught.evidence, caught.forward
    tensors = {"module.a": evidence.a, "module.b": evidence.b}
    if evidence.given is not None:
        tensors["module.input"] = evidence.given
    if forward is not None:
        call = forward.call
        tensors |= {"step.latents": call.latents, "step.timestep": call.timestep}
        given = {f"step.{one.name}": getattr(call.conditioning, one.name) for one in fields(Conditioning)}
        tensors |= {name: tensor for name, tensor in given.items() if tensor is not None}
    kind, settings, weights = _computed_from_weights(evidence, caught.modules)
    tensors |= weights
    folder.mkdir(parents=True, exist_ok=True)
    cpu = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}
    description: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "versions": {name: metadata.version(name) for name in ("undertow", "torch")},
        "machine": {"processor": platform.machine(), "instructions": torch.backends.cpu.get_cpu_capability()},
        "request": request.to_json(),
        "sides": sides,
        "tolerance": comparison.tolerance,
        "departure": _described(departure, evidence),
        "recomputed": {"kind": kind, "settings": settings},
        "verdict": comparison.verdict(),
    }
    description = json.loads(json.dumps(description, default=list))
    write_tensors(cpu, folder / TENSORS, {"format": "pt", SAID: _said(description)})
    description["sha256"] = _digest(folder / TENSORS)
    write_text(json.dumps(description, indent=2) + "\n", folder / DESCRIPTION)


@checked
def read_bundle(folder: str | Path) -> Bundle:
    """Errors: `UnknownCheckpoint` for a folder without one and for one of another version, `CorruptFile`."""
    place = Path(folder).expanduser()
    if not (place / DESCRIPTION).is_file():
        raise UnknownCheckpoint(place, f"no {DESCRIPTION} in it", AGAIN)
    description = read_json(place / DESCRIPTION)
    if description.get("format") != FORMAT:
        raise UnknownCheckpoint(place / DESCRIPTION, "this is no bundle of a departure", AGAIN)
    if (version := description.get("version")) != VERSION:
        problem = f"a bundle of version {version}, and this undertow reads version {VERSION}"
        newer = isinstance(version, int) and version > VERSION
        remedy = "pip install -U undertow" if newer else AGAIN
        raise UnknownCheckpoint(place / DESCRIPTION, problem, remedy)
    missing = [name for name in NEEDED if name not in description]
    if missing:
        raise CorruptFile(place / DESCRIPTION, f"{', '.join(missing)} missing", "copy the folder again")
    if not (place / TENSORS).is_file():
        raise CorruptFile(place / TENSORS, "missing", "copy the folder again")
    if _digest(place / TENSORS) != description["sha256"]:
        raise CorruptFile(place / TENSORS, "not what was written: its SHA-256 differs", "copy the folder again")
    weights = open_weights(place / TENSORS)
    if weights.metadata.get(SAID) != _said(description):
        raise CorruptFile(place / DESCRIPTION, "not what was written: it was edited since", "copy the folder again")
    return Bundle(folder=place, description=description, tensors={name: weights.read(name) for name in weights.tensors})


@torch.inference_mode()
def replay(bundle: Bundle, a: Drawing | None = None, b: Drawing | None = None) -> Replay:
    """Whether a departure is there on this machine: computed from the module's weights where they are in the bundle,
    else by both models on the inputs of the failing step.

    Errors: `InvalidInput` where models are needed and not given, where adapters acted, and for departures in the text
    encoders whose weights are not there.
    """
    recomputed = bundle.description["recomputed"]
    if bundle.is_self_contained and (a is None or b is None):
        given = bundle.tensor("module.input")
        outputs = [
            _compute(recomputed["kind"], recomputed["settings"][side], bundle.tensors, side, given) for side in "ab"
        ]
        return _replayed(bundle, outputs[0], outputs[1], "computed from its weights")
    if a is None or b is None:
        raise InvalidInput(
            "A and B", "not given", "the two models", f"the weights of {bundle.module} are not in the bundle"
        )
    if "step.latents" not in bundle.tensors or any(bundle.side(side).get("adapters") for side in "ab"):
        remedy = "compare again with the request in its bundle.json"
        raise InvalidInput("the bundle", "of a text encoder or of adapters", "one of a step of the U-Net", remedy)
    return _by_models(bundle, a, b)


def _by_models(bundle: Bundle, a: Drawing, b: Drawing) -> Replay:
    tensors, departure = bundle.tensors, bundle.description["departure"]
    names = {one.name for one in fields(Conditioning)}
    given = {name: tensors[f"step.{name}"] for name in names if f"step.{name}" in tensors}
    tape = Tape()
    forced = Forced(tape=tape, tolerance=bundle.description["tolerance"], root="unet")
    for side, listener in ((a, tape), (b, forced)):
        unet = side.model.require_unet()
        conditioning = Conditioning(**given).to(device=unet.device, dtype=unet.dtype)
        latents, timestep = (
            tensors["step.latents"].to(unet.device, unet.dtype),
            tensors["step.timestep"].to(unet.device),
        )
        with listening(modules_of(unet, "unet", ("*",)), listener):
            unet(latents, timestep, conditioning, Ports())
    found = [one for one in forced.errors if one.module == bundle.module and one.before == departure["before"]]
    now = max((one.error for one in found), default=0.0)
    key = (departure["key"][0], departure["key"][1])
    output = (tape.inputs if departure["before"] else tape.outputs).get(key)
    first = forced.first
    other = first.b if first is not None and first.key == key else None
    return Replay(
        module=bundle.module,
        then=departure["error"],
        now=now,
        tolerance=bundle.description["tolerance"],
        by="computed by both models",
        a=float("nan") if output is None else relative_error(output, bundle.tensor("module.a")),
        b=float("nan") if other is None else relative_error(other, bundle.tensor("module.b")),
    )


def _replayed(bundle: Bundle, a: Tensor, b: Tensor, by: str) -> Replay:
    return Replay(
        module=bundle.module,
        then=bundle.description["departure"]["error"],
        now=relative_error(b, a),
        tolerance=bundle.description["tolerance"],
        by=by,
        a=relative_error(a, bundle.tensor("module.a")),
        b=relative_error(b, bundle.tensor("module.b")),
    )


def _described(first: Departure, evidence: Evidence) -> dict[str, Any]:
    return {
        "module": first.module,
        "before": first.own.before,
        "key": list(evidence.key),
        "kind": first.kind,
        "stage": first.place.stage,
        "step": first.place.step,
        "branch": first.place.branch,
        "window": first.place.window,
        "error": finite(first.own.error),
        "inputs_agreed_within": finite(max(first.agreed, first.own.received)),
    }


def _computed_from_weights(
    evidence: Evidence, modules: tuple[nn.Module | None, nn.Module | None]
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """The kind, the settings and the weights of both sides, where these alone give what came out; else nothing: LoRA in
    slots, or code, may have had a part in it."""
    a, b = modules
    kind = type(a).__name__
    if a is None or b is None or evidence.own.before or evidence.given is None or kind != type(b).__name__:
        return "", {}, {}
    weights: dict[str, Tensor] = {
        f"{side}.{name}": weight for side, module in (("a", a), ("b", b)) for name, weight in module.named_parameters()
    }
    if kind not in SETTINGS:
        return "", {}, {}
    settings = {side: {name: getattr(module, name) for name in SETTINGS[kind]} for side, module in (("a", a), ("b", b))}
    for side, output in (("a", evidence.a), ("b", evidence.b)):
        again = _compute(kind, settings[side], {name: one.cpu() for name, one in weights.items()}, side, evidence.given)
        if relative_error(again, output) > max(evidence.own.error / 4, 1e-6):
            return "", {}, {}
    return kind, settings, weights


def _compute(kind: str, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], side: str, x: Tensor) -> Tensor:
    """Errors: `CorruptFile` for a kind or for settings that do not go with the tensors."""
    weight, bias = tensors.get(f"{side}.weight"), tensors.get(f"{side}.bias")
    given = x if weight is None else x.to(weight.dtype)
    kinds: Mapping[str, Callable[[], Tensor]] = {
        "Linear": lambda: F.linear(given, _there(weight), bias),
        "Conv2d": lambda: F.conv2d(given, _there(weight), bias, **_tuples(settings)),
        "GroupNorm": lambda: F.group_norm(given, settings["num_groups"], weight, bias, settings["eps"]),
        "LayerNorm": lambda: F.layer_norm(given, list(settings["normalized_shape"]), weight, bias, settings["eps"]),
    }
    try:
        return kinds[kind]()
    except UndertowError:
        raise
    except (RuntimeError, LookupError, TypeError, ValueError) as err:
        raise CorruptFile(DESCRIPTION, f"its {kind!r} cannot be computed ({err})", "copy the folder again") from err


def _there(weight: Tensor | None) -> Tensor:
    if weight is None:
        raise CorruptFile(TENSORS, "the module's weight is missing", "copy the folder again")
    return weight


def _tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists where PyTorch wants tuples."""
    return {name: tuple(one) if isinstance(one, list) else one for name, one in settings.items()}


def _said(description: Mapping[str, Any]) -> str:
    """The hash of what is said of the tensors, which stand beside it: neither goes with another of its kind."""
    said = {name: value for name, value in description.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
