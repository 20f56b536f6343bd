"""An adapter as a request names it: which file, with which pictures, how strongly, in which steps and where."""

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image

from undertow.adapters.pictures import described, found_again
from undertow.errors import InvalidInput
from undertow.picture_files import Picture, opened, several

Placing = Literal["auto", "banked", "merged"]
ControlMode = Literal["balanced", "prompt", "control"]
PICTURES = ("image", "mask")


@dataclass(frozen=True)
class Adapter:
    """source: a file or folder of LoRA and its kin, ControlNet, Control-LoRA, T2I-Adapter or IP-Adapter, here or on the
    Hub, or the name of one that came with the model (emoji: edges, references, line-drawing, mosaic); its kind is found
    from its tensors. name: what messages and `adapter_scales` call it; the file's when `None`.

    scale: times what the file was trained for, 0 leaves it out; several are spread evenly from the first step to the
    last, with straight lines between them. text_scale: of its part for the text encoders, which read before the first
    step; the scale at the first step in which it acts when `None`. start, end: the share of the steps before which it
    does not act yet, and after which it no longer does. blocks: factors by pattern of the names of the U-Net's
    injection points (`UNetState.injection_points`), e.g. {"up_blocks.*": 0.5, "*.attn1.*": 0} for a LoRA, {"middle": 0}
    for a ControlNet; the first that fits counts, others keep 1. residency: of a LoRA, "banked" in slots, so that unlike
    rows share a batch, or "merged" into the weights; see `choose_residency`. priority: whose part is kept where those
    of an `AdapterStack` are in each other's way, higher first.

    image: the control map of a ControlNet or T2I-Adapter, or the reference pictures of an IP-Adapter. mask: where it
    acts, white; for an IP-Adapter with several images one each, and then each is looked at by itself. encoder: the
    folder of an IP-Adapter's image encoder; `None` looks for `image_encoder` beside the file and in the model's folder.
    control_mode: of a ControlNet: "balanced"; "prompt", weaker towards the fine levels, so that the prompt counts for
    more; "control", the same and for the wanted picture alone, which guidance then drives towards the control map
    (A1111's three modes; diffusers' `guess_mode` is "control"). Errors: `InvalidInput`.
    """

    source: str | Path
    _: KW_ONLY
    name: str | None = None
    scale: float | tuple[float, ...] = 1.0
    text_scale: float | None = None
    start: float = 0.0
    end: float = 1.0
    blocks: Mapping[str, float] | None = None
    residency: Placing = "auto"
    priority: int = 0
    image: Picture | tuple[Picture, ...] | None = None
    mask: Picture | tuple[Picture, ...] | None = None
    encoder: str | Path | None = None
    control_mode: ControlMode = "balanced"

    def __post_init__(self) -> None:
        if not self.scales:
            raise InvalidInput("adapter.scale", (), "a number, or several", "leave it out for 1")
        numbers = [("scale", scale) for scale in self.scales]
        numbers += [("text_scale", self.text_scale)] if self.text_scale is not None else []
        numbers += [(f"blocks[{pattern!r}]", factor) for pattern, factor in (self.blocks or {}).items()]
        for name, number in numbers:
            if not math.isfinite(number):
                raise InvalidInput(f"adapter.{name}", number, "a finite number", "1 is as trained, 0 is off")
        if not 0 <= self.start < self.end <= 1:
            raise InvalidInput(
                "adapter.start, end", (self.start, self.end), "0 <= start < end <= 1: shares of the steps", "0 and 1"
            )
        if self.residency not in ("auto", "banked", "merged"):
            raise InvalidInput("adapter.residency", repr(self.residency), "'auto', 'banked' or 'merged'")
        if self.control_mode not in get_args(ControlMode):
            raise InvalidInput("adapter.control_mode", repr(self.control_mode), "'balanced', 'prompt' or 'control'")
        for name in PICTURES:
            for picture in several(getattr(self, name)):
                if not isinstance(picture, Image.Image | str | Path):
                    raise InvalidInput(
                        f"adapter.{name}", type(picture).__name__, "a PIL image, or the path of a picture"
                    )

    @property
    def scales(self) -> tuple[float, ...]:
        return self.scale if isinstance(self.scale, tuple) else (self.scale,)

    @property
    def title(self) -> str:
        """Its name, else the file's without the ending."""
        return Path(self.source).stem if self.name is None else self.name

    def images(self) -> tuple[Image.Image, ...]:
        """Its control map or reference pictures. Errors: `InvalidInput` for a file that is no picture."""
        return tuple(opened(f"image of {self.title}", picture) for picture in several(self.image))

    def masks(self) -> tuple[Image.Image, ...]:
        """Where it acts. Errors: `InvalidInput` for a file that is no picture."""
        return tuple(opened(f"mask of {self.title}", picture) for picture in several(self.mask))

    def gain(self, step: int, steps: int) -> float:
        """How strongly it acts in a step; 0 outside its share of them, by diffusers' rule for ControlNets."""
        if step / steps < self.start or (step + 1) / steps > self.end:
            return 0.0
        place = 0.0 if steps == 1 else step / (steps - 1) * (len(self.scales) - 1)
        before = min(int(place), len(self.scales) - 1)
        after = min(before + 1, len(self.scales) - 1)
        return self.scales[before] + (place - before) * (self.scales[after] - self.scales[before])

    def text_gain(self, steps: int) -> float:
        """How strongly its part for the text encoders acts."""
        if self.text_scale is not None:
            return self.text_scale
        return next((gain for step in range(steps) if (gain := self.gain(step, steps))), 0.0)

    def factor(self, layer: str) -> float:
        """How much of it acts in a layer, by `blocks`."""
        patterns = {} if self.blocks is None else self.blocks
        return next((factor for pattern, factor in patterns.items() if fnmatchcase(layer, pattern)), 1.0)

    def to_json(self) -> dict[str, Any]:
        """Its fields in JSON's words; pictures become their file, if they came from one, their size and hash."""
        json = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in PICTURES:
            given = several(getattr(self, name))
            json[name] = [described(f"{name} of {self.title}", picture) for picture in given] or None
        for name in ("source", "encoder"):
            json[name] = None if json[name] is None else str(json[name])
        return json | {"blocks": None if self.blocks is None else dict(self.blocks)}

    @classmethod
    def from_json(cls, json: Mapping[str, Any]) -> "Adapter":
        """The adapter that `to_json` wrote. Errors: `InvalidInput` for unknown or missing fields, and for pictures that
        came from no file or are no longer the same."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(json.keys() - known)
        if unknown or "source" not in json:
            raise InvalidInput("adapter", unknown or "without a source", f"the fields {', '.join(sorted(known))}")
        scale = json.get("scale", 1.0)
        pictures = {
            name: tuple(found_again(f"adapter.{name}", one) for one in json.get(name) or ()) or None
            for name in PICTURES
        }
        return cls(**{**json, **pictures, "scale": tuple(scale) if isinstance(scale, list) else scale})
