"""Random work to hold the forecast to: narrow networks with every structure that the published ones have, and some of
these themselves."""

import random
from dataclasses import dataclass, replace
from typing import Any

from undertow.adapters.control.config import ControlNetConfig
from undertow.memory.families import family
from undertow.memory.work import Subject, TextNetwork, TrainingWork, VAENetwork, Work
from undertow.unet.config import CrossAttention, Level, Middle, TextTime, UNetConfig

STAGES = ("denoise",) * 6 + ("decode", "decode", "encode", "controlnet", "text")
"""As often as they are drawn."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One stage of some work."""

    stage: str
    subject: Subject
    work: Work

    @property
    def title(self) -> str:
        """What it is, in a line; the work's fields as far as they are unusual."""
        usual = Work()
        fields = {name: getattr(self.work, name) for name in Work.__slots__ if name not in ("keep", "steps")}
        unusual = {name: value for name, value in fields.items() if value != getattr(usual, name)}
        return f"{self.subject.name} {self.stage} " + " ".join(f"{name}={value}" for name, value in unusual.items())


def cases(seed: int, count: int, *, large: bool = True) -> list[Case]:
    """Random cases. large: the published networks among them, one of every ten."""
    numbers = random.Random(seed)
    return [_case(numbers, large=large and index % 10 == 9) for index in range(count)]


def float16_cases() -> list[Case]:
    """Narrow ones of other numbers, all in float16."""
    drawn = cases(16, 40, large=False)
    return [replace(case, work=replace(case.work, dtype="float16")) for case in drawn]


def _case(numbers: random.Random, *, large: bool) -> Case:
    stage = numbers.choice(STAGES)
    subject = numbers.choice(PUBLISHED if large else NARROW)
    if subject.vae is None:
        stage = "denoise"
    unit = 8 if subject.vae is None else subject.factor
    side = (2, 12) if subject.vae is None else (4, 16) if large and stage in ("denoise", "controlnet") else (8, 40)
    work = Work(
        size=(unit * numbers.randint(*side), unit * numbers.randint(*side)),
        pictures=numbers.choice((1, 1, 1, 2)),
        branches=numbers.choice((1, 2)),
        dtype=numbers.choice(("float32", "bfloat16")),
        kernel=numbers.choice(("auto", "auto", "sdpa", "math", "chunked")),
        tokens=numbers.choice((77, 77, 154, 231)),
    )
    if large:
        work = replace(work, pictures=1, dtype="bfloat16" if subject.name == "sdxl" else work.dtype)
    return Case(stage=stage, subject=subject, work=_adapted(numbers, stage, subject, work))


def _adapted(numbers: random.Random, stage: str, subject: Subject, work: Work) -> Work:
    if stage == "controlnet":
        return replace(work, controlnets=1)
    if stage != "denoise" or subject.controlnet is None:
        return work
    loras, control, image = numbers.choice((0, 0, 1, 2)), numbers.choice((0, 0, 1)), numbers.choice((0, 0, 4, 16))
    return replace(work, loras=loras, lora_rank=numbers.choice((4, 16)), controlnets=control, image_tokens=image)


_VAE = VAENetwork(level_channels=(32, 64, 64))
_TEXT = (
    TextNetwork(width=64, layers=2, heads=4, intermediate=256, activation="quick_gelu"),
    TextNetwork(width=96, layers=3, heads=4, intermediate=384, activation="gelu", projection=96),
)


def _narrow(name: str, config: UNetConfig) -> Subject:
    control = ControlNetConfig(unet=replace(config, in_channels=4))
    return Subject(name=f"narrow {name}", unet=config, vae=_VAE, text_encoders=_TEXT, controlnet=control)


def _levels(*channels: int, heads: int, depth: int = 1) -> tuple[Level, ...]:
    kind = CrossAttention(heads=heads, depth=depth)
    return (*(Level(channels=width, attention=kind) for width in channels), Level(channels=channels[-1]))


_SD1 = UNetConfig(
    levels=_levels(64, 128, 192, heads=4), middle=Middle(attention=CrossAttention(heads=4)), context_dim=64
)
_XL = UNetConfig(
    levels=(Level(channels=64), *_levels(96, 160, heads=2, depth=2)[:2]),
    middle=Middle(attention=CrossAttention(heads=2, depth=3)),
    context_dim=96,
    linear_projection=True,
    added=TextTime(pooled_dim=64),
)
NARROW = (
    _narrow("sd15", _SD1),
    _narrow("sd15-inpaint", replace(_SD1, in_channels=9)),
    _narrow("sd21", replace(_SD1, linear_projection=True)),
    _narrow("sdxl", _XL),
    _narrow("sdxl-refiner", replace(_XL, added=TextTime(pooled_dim=64, ids=5), norm_groups=16)),
    family("cifar10"),
)
PUBLISHED = (family("sd15"), family("sd15"), family("sd21"), family("sdxl"))


def _published(index: int, stage: str, **fields: Any) -> Case:
    return Case(stage=stage, subject=PUBLISHED[index], work=Work(**fields))


CHOSEN = (
    Case(stage="denoise", subject=NARROW[0], work=Work(size=(128, 128))),
    Case(stage="decode", subject=NARROW[0], work=Work(size=(256, 256))),
    _published(0, "denoise", size=(128, 128), dtype="bfloat16"),
    _published(0, "decode", size=(256, 256)),
    _published(3, "text", tokens=154, dtype="bfloat16"),
    _published(0, "denoise", size=(512, 512), dtype="float16", kernel="sdpa"),
    _published(0, "denoise", size=(512, 512), kernel="sdpa"),
    _published(0, "denoise", size=(512, 512), dtype="float16", kernel="math"),
    _published(0, "denoise", size=(512, 512), dtype="float16", kernel="sdpa", loras=2, lora_slots=2),
    _published(3, "denoise", size=(1024, 1024), dtype="float16", kernel="sdpa"),
    _published(0, "controlnet", size=(512, 512), dtype="float16", kernel="sdpa", controlnets=1),
    _published(0, "decode", size=(512, 512)),
    _published(0, "decode", size=(1024, 1024), dtype="float16"),
    _published(0, "encode", size=(512, 512)),
)
"""Of each a fresh process is worth while; of the first ones also on a CPU."""

ON_CPU = 5

HELD_OUT = (
    _published(0, "denoise", size=(768, 512), dtype="float16", kernel="sdpa"),
    _published(3, "denoise", size=(768, 768), branches=1, dtype="float16", kernel="sdpa"),
    _published(0, "decode", size=(768, 768), dtype="float16"),
    _published(0, "encode", size=(768, 768)),
)
"""To which what was calibrated by the others is held on a GPU."""

LARGE = (
    _published(0, "decode", size=(512, 512)),
    _published(0, "denoise", size=(256, 256), branches=1),
    _published(0, "denoise", size=(512, 512), branches=1, dtype="bfloat16"),
    _published(0, "denoise", size=(512, 512), dtype="bfloat16", kernel="sdpa"),
    _published(3, "denoise", size=(512, 512), branches=1, dtype="bfloat16"),
    _published(0, "encode", size=(256, 256), dtype="bfloat16"),
)
"""Published networks at ordinary sizes, as far as a CPU gets there in minutes."""


def _last(subject: Subject) -> int:
    """The decoder's level of the largest maps."""
    assert subject.unet is not None
    return len(subject.unet.levels) - 1


TRAINED = tuple(
    Case(
        stage="train",
        subject=subject,
        work=Work(size=size, training=TrainingWork(kind=kind, batch=2, checkpointing=checkpointing)),
    )
    for subject, size, kinds in (
        (NARROW[0], (96, 128), ("lora", "full")),
        (NARROW[3], (96, 128), ("lora", "full")),
        (NARROW[5], (32, 32), ("full",)),
    )
    for kind in kinds
    for checkpointing in ("none", "layers", ("down_blocks.0", f"up_blocks.{_last(subject)}"))
)
