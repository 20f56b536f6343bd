"""A1111's settings as fields of a request: also those of Forge and SD.Next, which write the same text."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from undertow.diffusion.grids import GRIDS
from undertow.errors import InvalidInput
from undertow.infotext.reading import INVERSION, LORA, Collector, NamedFile, Reading
from undertow.infotext.settings import Infotext, parse_infotext, parse_settings
from undertow.known_names import AUTOMATIC
from undertow.sampling.catalogue import SAMPLERS
from undertow.sampling.names import read_names

_TAG = re.compile(r"<(\w+):([^<>]+)>")
_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")
_VERSION = re.compile(r"v?(\d+)\.(\d+)")

TOOL, UNIFORM = "A1111", "normal"

OPTIONS = {
    "Eta": "eta",
    "Eta DDIM": "eta",
    "Sigma churn": "s_churn",
    "Sigma tmin": "s_tmin",
    "Sigma tmax": "s_tmax",
    "Sigma noise": "s_noise",
}
"""A1111's settings of samplers, and the options of ours."""

NUMBERS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "Steps": ("steps", int),
    "CFG scale": ("guidance_scale", float),
    "Image CFG scale": ("image_guidance_scale", float),
    "Seed": ("seed", int),
    "Clip skip": ("clip_skip", int),
    "Variation seed": ("variation_seed", int),
    "Variation seed strength": ("variation_strength", float),
    "Refiner switch at": ("refiner_switch", float),
}
"""Settings that are a number of the request's."""

REASONS = {
    "RNG": "noise is drawn by the CPU's generator; the picture will be another one",
    "VAE": "the model's own autoencoder is taken",
    "VAE hash": "the model's own autoencoder is taken",
    "Face restoration": "nothing is drawn over faces",
    "ENSD": "seeds have no offset",
    "Init image hash": "the picture itself is not stored",
    "Hires resize": "the second pass takes a scale",
}

UNKNOWN = "undertow has no such setting"

GPU_NOISE = "A1111 draws noise by the GPU's generator unless told otherwise, so that the picture will be another one"


def read_a1111(text: str) -> Reading:
    """What A1111's text says of a picture."""
    return _Reader(infotext=parse_infotext(text)).read()


@dataclass(kw_only=True)
class _Reader:
    infotext: Infotext
    found: Collector = field(default_factory=Collector)

    def __post_init__(self) -> None:
        self.left = dict(self.infotext.settings)

    def read(self) -> Reading:
        found = self.found
        version = self.left.pop("Version", "")
        self._texts()
        for name, (target, kind) in NUMBERS.items():
            self._number(name, target, kind)
        self._sampler(version)
        self._size()
        self._strength()
        self._model()
        if self.left.get("Tiling") == "True":
            found.request["seamless"] = "both"
            del self.left["Tiling"]
        if self.left.get("Discard penultimate sigma") == "True":
            found.request["discard_penultimate"] = True
            del self.left["Discard penultimate sigma"]
        if self.left.get("RNG") == "CPU":
            del self.left["RNG"]
        elif self.infotext.settings and version != "undertow" and "RNG" not in self.left:
            found.notes.append(GPU_NOISE)
        for name, value in self.left.items():
            found.skip(name, value, REASONS.get(name, UNKNOWN))
        return found.reading(_program(version), version)

    def _texts(self) -> None:
        """The prompts without their tags, whose files are named."""
        hashes = parse_settings(self.left.pop("Lora hashes", ""))
        inversions = parse_settings(self.left.pop("TI hashes", ""))
        for name, text in (("prompt", self.infotext.prompt), ("negative_prompt", self.infotext.negative_prompt)):
            for tag in _TAG.finditer(text):
                self._tag(tag[1], tag[2].split(":"), hashes)
            self.found.request[name] = _TAG.sub("", text).strip()
        for name, digits in inversions.items():
            self.found.files.append(NamedFile(kind=INVERSION, name=name, option="--embedding", hash=digits))

    def _tag(self, kind: str, arguments: list[str], hashes: Mapping[str, str]) -> None:
        if kind not in ("lora", "lyco"):
            self.found.skip(kind, ":".join(arguments), "such tags are not known")
            return
        name, scale = arguments[0], _finite(arguments[1]) if len(arguments) > 1 else 1.0
        if len(arguments) > 2:
            self.found.skip("lora", ":".join(arguments), "of a tag only the name and the first scale are read")
        file = NamedFile(kind=LORA, name=name, option="--lora", hash=hashes.get(name, ""), scale=scale)
        self.found.files.append(file)

    def _number(self, name: str, target: str, kind: Callable[[str], Any]) -> None:
        if name not in self.left:
            return
        text = self.left.pop(name)
        if target == "seed" and text == "-1":
            self.found.skip(name, text, "it asks for any seed, and does not say which one was drawn")
            return
        try:
            number = kind(text)
            if not math.isfinite(number):
                raise ValueError(text)
            self.found.request[target] = number
        except (ValueError, OverflowError):
            self.found.skip(name, text, "it is no number")

    def _sampler(self, version: str) -> None:
        name = self.left.pop("Sampler", None)
        schedule = self.left.pop("Schedule type", None)
        if name is None:
            if schedule is not None:
                self.found.skip("Schedule type", schedule, "no sampler is named beside it")
            return
        try:
            sampler, ours = read_names(name, schedule, tool=TOOL)
            if ours is None:  # before 1.9 a sampler without a schedule's name had the uniform one
                ours = read_names(name, AUTOMATIC, tool=TOOL)[1] if _has_schedules(version) else UNIFORM
        except InvalidInput:
            self.found.skip("Sampler", name, "no sampler of this name is known")
            return
        self.found.request["sampler"] = sampler
        if ours in GRIDS:
            self.found.request["schedule"] = ours
        else:
            self.found.skip("Schedule type", schedule, "no schedule of this name is known")
        self._options(sampler)

    def _options(self, sampler: str) -> None:
        known = SAMPLERS[sampler].options
        options: dict[str, float] = {}
        for name, option in OPTIONS.items():
            value = _finite(self.left.get(name, ""))
            if value is not None and option in known:
                options[option] = value
                del self.left[name]
        if options:
            self.found.request["sampler_options"] = options

    def _size(self) -> None:
        text = self.left.pop("Size", None)
        if text is None:
            return
        size = _SIZE.fullmatch(text)
        if size is None:
            self.found.skip("Size", text, "it is not WIDTHxHEIGHT")
        else:
            self.found.request["size"] = [int(size[2]), int(size[1])]

    def _strength(self) -> None:
        """Of the second pass if there is one, else of a picture that was started from."""
        strength = _finite(self.left.get("Denoising strength", ""))
        scale = _finite(self.left.get("Hires upscale", ""))
        if scale is not None and scale > 1:
            second: dict[str, Any] = {"scale": scale}
            if strength is not None:
                second["strength"] = strength
            if self.left.get("Hires steps", "").isdecimal() and int(self.left["Hires steps"]) > 0:
                second["steps"] = int(self.left["Hires steps"])
            upscaler = self.left.get("Hires upscaler", "")
            second["upscale"] = "latent" if upscaler.startswith("Latent") else "pixels"
            if upscaler not in ("", "Latent", "Lanczos"):
                self.found.skip("Hires upscaler", upscaler, f"{second['upscale']} are resized instead")
            self.found.request["high_resolution"] = second
            for name in ("Denoising strength", "Hires upscale", "Hires steps", "Hires upscaler"):
                self.left.pop(name, None)
        elif strength is not None:
            self.found.request |= {"strength": strength, "strength_convention": "a1111"}
            self.found.files.append(NamedFile(kind="picture", name="it started from", option="--image"))
            del self.left["Denoising strength"]

    def _model(self) -> None:
        for name, option in (("Model", "--model"), ("Refiner", "--refiner")):
            value, digits = self.left.pop(name, ""), self.left.pop(f"{name} hash", "")
            title, bracket, bracketed = value.removesuffix("]").rpartition(" [")
            if bracket and value.endswith("]"):  # "sd_xl_refiner_1.0 [7440042bbd]"
                value, digits = title, bracketed
            if value or digits:
                self.found.files.append(NamedFile(kind=name.lower(), name=value, option=option, hash=digits))


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def _has_schedules(version: str) -> bool:
    """Whether this version of A1111 writes schedules by themselves: 1.9 and later, and Forge."""
    found = _VERSION.match(version)
    return version.startswith("f") or (found is not None and (int(found[1]), int(found[2])) >= (1, 9))


def _program(version: str) -> str:
    if version == "undertow":
        return "undertow"
    return "Forge" if version.startswith("f") else "A1111"
