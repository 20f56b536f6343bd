"""An adapter as a request names it: which file, with which pictures, how strongly, in which steps and where."""

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le
from PIL import Image

from undertow.errors import InvalidInput
from undertow.limits import LARGEST_SCALE
from undertow.pictures.fields import PicturesField
from undertow.pictures.files import PICTURE_KINDS, opened, several
from undertow.records import Finite, Record, require_fields

Placing = Literal["auto", "banked", "merged"]
ControlMode = Literal["balanced", "prompt", "control"]
PICTURES = ("image", "mask")


@dataclass(frozen=True)
class Adapter(Record):
    """A LoRA and its kin, a ControlNet, Control-LoRA, T2I-Adapter or IP-Adapter; the kind is found from the file's
    tensors. Errors: `InvalidInput`."""

    argument_prefix: ClassVar[str] = "adapter."

    source: str | Path
    """A file or folder, a file on the Hub, or the name of an adapter that came with the model (emoji: edges,
    references, line-drawing, mosaic)."""
    _: KW_ONLY
    name: str | None = None
    """What messages and `adapter_scales` call it; the file's name when `None`."""

    # How strongly, when and in which layers it acts
    scale: Finite | tuple[Finite, ...] = 1.0
    """How strongly it acts, 1 as trained and 0 not at all; several values are spread over the steps. The first is for
    the first step, the last for the last, the others evenly between, with linear interpolation."""
    text_scale: Finite | None = None
    """Strength of the part for the text encoders, which run before the first step. When `None`, the scale at the first
    step in which the adapter acts."""
    start: Annotated[float, Ge(0), Le(1)] = 0.0
    """The share of the steps before which it does not act."""
    end: Annotated[float, Ge(0), Le(1)] = 1.0
    """The share of the steps after which it no longer acts."""
    blocks: Mapping[str, Finite] | None = None
    """Factors by pattern of the U-Net's layer names; the first that matches counts, everything else keeps 1. For
    example {"up_blocks.*": 0.5, "*.attn1.*": 0} for a LoRA, {"middle": 0} for a ControlNet; the names are those of
    `UNetState.injection_points`."""
    residency: Placing = "auto"
    """Of a LoRA: "banked" in slots, so that rows with different adapters share a batch, or "merged" into the weights;
    see `choose_residency`."""
    priority: int = 0
    """Whose part is kept where adapters of an `AdapterStack` conflict; higher goes first."""

    # Pictures
    image: PicturesField = None
    """The control map of a ControlNet or T2I-Adapter, or the reference pictures of an IP-Adapter."""
    mask: PicturesField = None
    """Where the adapter acts, in white. An IP-Adapter with several images takes one mask for each and then attends to
    each image by itself."""
    encoder: str | Path | None = None
    """The folder of an IP-Adapter's image encoder. When `None`, `image_encoder` beside the file and in the model's
    folder."""
    control_mode: ControlMode = "balanced"
    """Of a ControlNet: "balanced"; "prompt", weaker at the fine levels, so that the prompt counts for more; "control",
    the same for the conditional branch alone, so that guidance pushes towards the control map (A1111's three modes;
    diffusers' `guess_mode` is "control")."""

    def __post_init__(self) -> None:
        if not self.scales:
            raise InvalidInput("adapter.scale", (), "a number, or several", "leave it out for 1")
        numbers = [("scale", scale) for scale in self.scales]
        numbers += [("text_scale", self.text_scale)] if self.text_scale is not None else []
        numbers += [(f"blocks[{pattern!r}]", factor) for pattern, factor in (self.blocks or {}).items()]
        for name, number in numbers:
            if not math.isfinite(number):
                raise InvalidInput(f"adapter.{name}", number, "a finite number", "1 is as trained, 0 is off")
            if abs(number) > LARGEST_SCALE:
                expected = f"a number from -{LARGEST_SCALE:,} to {LARGEST_SCALE:,}"
                raise InvalidInput(f"adapter.{name}", number, expected, "1 is as trained, 0 is off")
        if not 0 <= self.start < self.end <= 1:
            raise InvalidInput(
                "adapter.start, end", (self.start, self.end), "0 <= start < end <= 1: shares of the steps", "0 and 1"
            )
        require_fields(self)
        for name in PICTURES:
            for picture in several(getattr(self, name)):
                if not isinstance(picture, Image.Image | str | Path):
                    raise InvalidInput(f"adapter.{name}", type(picture).__name__, PICTURE_KINDS)

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


def as_adapters(given: Any) -> Any:
    """Sources for adapters, and one for several: "mosaic" is (Adapter("mosaic"),). Everything else as it is."""
    several = (given,) if isinstance(given, str | Path | Adapter) else given
    if not isinstance(several, list | tuple):
        return given
    return tuple(Adapter(one) if isinstance(one, str | Path) else one for one in several)
