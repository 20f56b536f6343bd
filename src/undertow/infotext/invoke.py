"""InvokeAI's settings, which it writes as JSON, as fields of a request (its invocations/metadata.py, since version 3).

Its samplers are diffusers' schedulers on the model's own timesteps, or on Karras' levels where the name ends in _k
(backend/stable_diffusion/schedulers/schedulers.py); prompts are written in compel's syntax.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from undertow.infotext.reading import LORA, Collector, NamedFile, Reading
from undertow.known_names import GRID_ALIASES

SAMPLERS: Mapping[str, str] = {
    **{name: name for name in ("ddim", "ddpm", "dpmpp_2s", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "dpmpp_sde")},
    **{name: name for name in ("er_sde", "euler", "euler_a", "heun", "lcm", "lms", "pndm", "tcd")},
    "deis": "deis_log_rho",
    "kdpm_2": "dpm2",
    "kdpm_2_a": "dpm2_a",
    "unipc": "unipc_bh2",
}
"""By InvokeAI's names without _k, ours."""

NUMBERS: Mapping[str, str] = {
    "seed": "seed",
    "steps": "steps",
    "cfg_scale": "guidance_scale",
    "refiner_start": "refiner_switch",
}

TEXTS: Mapping[str, str] = {"positive_prompt": "prompt", "negative_prompt": "negative_prompt"}

OF_ONE_PICTURE = ("txt2img", "sdxl_txt2img", "img2img", "sdxl_img2img")
"""Kinds of work that a request says by what it has."""

REASONS: Mapping[str, str] = {
    "vae": "the model's own autoencoder is taken",
    "positive_style_prompt": "both encoders of SDXL read the prompt",
    "negative_style_prompt": "both encoders of SDXL read the negative prompt",
    "controlnets": "give them by --adapter NAME=PICTURE",
    "ipAdapters": "give them by --adapter NAME=PICTURE",
    "t2iAdapters": "give them by --adapter NAME=PICTURE",
    "rand_device": "noise is drawn by the CPU's generator; the picture will be another one",
}

UNKNOWN = "undertow has no such setting"

MOST_SHOWN = 200
"""Characters of a value that is listed."""


def read_invoke(text: str) -> Reading | None:
    """What InvokeAI's "invokeai_metadata" says of a picture; `None` for what is no such JSON."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return _Reader(left=dict(found)).read() if isinstance(found, dict) and found else None


@dataclass(kw_only=True)
class _Reader:
    left: dict[str, Any]
    found: Collector = field(default_factory=Collector)

    def read(self) -> Reading:
        version = str(self.left.pop("app_version", ""))
        self.found.request["dialect"] = "compel"
        for name, target in TEXTS.items():
            text = self.left.pop(name, "")
            self.found.request[target] = text if isinstance(text, str) else ""
        for name, target in NUMBERS.items():
            if self.left.get(name) is not None:
                self._number(name, target)
        self._scheduler()
        self._picture()
        self._files()
        self._rest()
        return self.found.reading("InvokeAI", version)

    def _number(self, name: str, target: str) -> None:
        value = self.left.pop(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            self.found.request[target] = value
        else:
            self.found.skip(name, value, "it is no number")

    def _scheduler(self) -> None:
        name = self.left.pop("scheduler", None)
        if name is None:
            return
        sampler = SAMPLERS.get(str(name).removesuffix("_k"))
        if sampler is None:
            self.found.skip("scheduler", name, "no sampler of this name is known")
            return
        curve = "use_karras_sigmas" if str(name).endswith("_k") else "leading"
        self.found.request |= {"sampler": sampler, "schedule": GRID_ALIASES["diffusers"][curve]}

    def _picture(self) -> None:
        """Its size, and what it was started from."""
        height, width = self.left.pop("height", None), self.left.pop("width", None)
        if isinstance(height, int) and isinstance(width, int):
            self.found.request["size"] = [height, width]
        mode, strength, name = (self.left.pop(key, None) for key in ("generation_mode", "strength", "init_image"))
        if mode is not None and mode not in OF_ONE_PICTURE:
            self.found.skip("generation_mode", mode, "what it was drawn over is not stored")
        if name is not None or (isinstance(mode, str) and mode.endswith("img2img")):
            named = str(name or "it started from")
            self.found.files.append(NamedFile(kind="picture", name=named, option="--image"))
            if isinstance(strength, int | float):
                self.found.request |= {"strength": strength, "strength_convention": "diffusers"}

    def _files(self) -> None:
        """By their names: InvokeAI's hashes are BLAKE3, by which no file is known here."""
        for key, kind, option in (("model", "model", "--model"), ("refiner_model", "refiner", "--refiner")):
            if (value := self.left.pop(key, None)) is not None:
                self.found.files.append(NamedFile(kind=kind, name=_name(value), option=option))
        loras = self.left.pop("loras", None)
        for entry in loras if isinstance(loras, list) else ():
            if isinstance(entry, dict):
                scale = entry.get("weight")
                scale = float(scale) if isinstance(scale, int | float) else None
                name = _name(entry.get("model", entry.get("lora")))
                self.found.files.append(NamedFile(kind=LORA, name=name, option="--lora", scale=scale))

    def _rest(self) -> None:
        skipped = self.left.pop("clip_skip", 0)
        if isinstance(skipped, int) and skipped > 0:  # layers that are left out, not the one that is read
            self.found.request["clip_skip"] = skipped + 1
        axes = [axis for axis in "xy" if self.left.pop(f"seamless_{axis}", False) is True]
        if axes:
            self.found.request["seamless"] = "both" if len(axes) == 2 else axes[0]
        if self.left.get("rand_device") == "cpu":
            del self.left["rand_device"]
        for name, value in self.left.items():
            if value not in (None, False, 0, "", [], {}):
                shown = json.dumps(value, ensure_ascii=False)[:MOST_SHOWN]
                self.found.skip(name, shown, REASONS.get(name, UNKNOWN))


def _name(model: Any) -> str:
    """Of a model as version 4 and later write it, or version 3."""
    fields = model if isinstance(model, dict) else {}
    return str(fields.get("name", fields.get("model_name", "")))
