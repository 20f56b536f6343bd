"""Everything that decides what a training run does, as one frozen record, and its JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from undertow.errors import ConfigError, InvalidInput
from undertow.training.augmentation import Augmentation
from undertow.training.data import DATA_SOURCES, DataSource
from undertow.training.fit import FitSettings
from undertow.training.objective import PRESETS, Ddpm, Flow
from undertow.training.optimizer import OPTIMIZERS
from undertow.training.pictures import Pictures
from undertow.unet.blocks import Checkpointing
from undertow.unet.config import ClassLabels, Level, Middle, SelfAttention, UNetConfig
from undertow.unet.diffusers_config import config_from_diffusers, config_to_diffusers

FIT_FIELDS = frozenset(field.name for field in fields(FitSettings))

BETAS = (0.9, 0.999)
"""Of AdamW, its authors' own."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """A training run. Equal configs give equal weights, bit by bit on one machine with one number of threads.

    batch_size: of all devices together. steps: optimizer steps. optimizer: "adamw" or "muon". warmup_steps: of the
    learning rate. decay: of the learning rate after the warm-up. clip_norm: largest norm of the gradient.
    label_dropout: probability with which a row loses its label, for guidance. freeze: `fnmatch` patterns of parameters
    that do not learn. start_from: folder of a trained model whose weights are the start; `None` starts at random.
    precision: of activations; weights and gradients are float32. gradient_checkpointing: `True`, or names of the
    U-Net's blocks such as "up_blocks.3"; of `UNetConfig.cifar10()` at batch 8 it kept 46 instead of 186 MiB of
    activations, for a quarter more time (CPU, float32). sample_every, checkpoint_every: in steps. keep_checkpoints: how
    many of the newest stay. Errors: `ConfigError` names the field.
    """

    data: DataSource
    objective: Ddpm | Flow
    unet: UNetConfig
    steps: int
    batch_size: int
    learning_rate: float = 1e-3
    optimizer: str = "adamw"
    warmup_steps: int = 100
    decay: str = "cosine"
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.995
    label_dropout: float = 0.1
    augmentation: Augmentation = Augmentation()
    precision: str = "float32"
    gradient_checkpointing: Checkpointing = False
    freeze: tuple[str, ...] = ()
    start_from: str | None = None
    seed: int = 0
    log_every: int = 10
    sample_every: int = 500
    checkpoint_every: int = 250
    keep_checkpoints: int = 2

    def __post_init__(self):
        for name in ("steps", "batch_size", "log_every", "sample_every", "checkpoint_every", "keep_checkpoints"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        for name in ("learning_rate", "clip_norm"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "must be positive")
        for name in ("warmup_steps", "weight_decay", "seed"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "must not be negative")
        _require(self.optimizer in OPTIMIZERS, "optimizer", self.optimizer, "must be 'adamw' or 'muon'")
        _require(self.decay in ("constant", "cosine"), "decay", self.decay, "must be 'constant' or 'cosine'")
        _require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "must lie in [0, 1)")
        _require(0 <= self.label_dropout < 1, "label_dropout", self.label_dropout, "must lie in [0, 1)")
        _require(self.precision in ("float32", "bf16"), "precision", self.precision, "must be 'float32' or 'bf16'")
        null = isinstance(self.unet.added, ClassLabels) and self.unet.added.null
        _require(
            self.label_dropout == 0 or null,
            "label_dropout",
            self.label_dropout,
            "needs a U-Net with ClassLabels(null=True), whose null row stands for no label",
        )

    def fit_settings(self) -> FitSettings:
        """Its part that every kind of training has."""
        shared = {name: getattr(self, name) for name in FIT_FIELDS - {"betas"}}
        return FitSettings(**shared, betas=BETAS)

    def recipe(self) -> dict[str, Any]:
        """What else decides the weights, as JSON."""
        own = config_to_json(self)
        return {name: value for name, value in own.items() if name not in FIT_FIELDS and name != "sample_every"}

    def require_pictures(self, pictures: Pictures) -> None:
        """Refuse pictures that the U-Net cannot be trained on. Errors: `ConfigError`."""
        _require(
            self.unet.in_channels == self.unet.out_channels == pictures.channels,
            "unet.in_channels",
            self.unet.in_channels,
            f"and out_channels must be {pictures.channels}, the pictures' channels",
        )
        match self.unet.added:
            case ClassLabels(count=count):
                classes = len(pictures.class_names)
                _require(count == classes, "unet.added.count", count, f"must be {classes}, the number of classes")
            case None:
                pass
            case other:
                raise ConfigError("unet.added", other, "must be ClassLabels or None to train on labeled pictures")


def pixel_unet(
    pictures: Pictures, *, widths: tuple[int, ...], resnets: int = 1, head_dim: int = 32, dropout: float = 0.0
) -> UNetConfig:
    """A class-conditional pixel U-Net with a null class, and attention everywhere but at the first level.

    It loads in diffusers' UNet2DModel. Errors: `ConfigError`.
    """
    levels = tuple(
        Level(
            channels=width, resnets=resnets, attention=SelfAttention(heads=max(1, width // head_dim)) if index else None
        )
        for index, width in enumerate(widths)
    )
    return UNetConfig(
        levels=levels,
        middle=Middle(attention=SelfAttention(heads=max(1, widths[-1] // head_dim))),
        in_channels=pictures.channels,
        out_channels=pictures.channels,
        added=ClassLabels(count=len(pictures.class_names), null=True),
        norm_groups=8,
        dropout=dropout,
        sample_size=pictures.pixels.shape[-1],
    )


def config_to_json(config: TrainingConfig) -> dict[str, Any]:
    """The config in words that JSON has; the U-Net as diffusers' config."""
    json = {field.name: getattr(config, field.name) for field in fields(config)}
    return json | {
        "data": _tagged(config.data, DATA_SOURCES),
        "objective": _tagged(config.objective, PRESETS),
        "unet": config_to_diffusers(config.unet),
        "augmentation": _plain(config.augmentation),
        "freeze": list(config.freeze),
        "gradient_checkpointing": _json_blocks(config.gradient_checkpointing),
    }


def config_from_json(json: Mapping[str, Any]) -> TrainingConfig:
    """The inverse. Errors: `ConfigError` for a field that is unknown, missing or impossible."""
    parts = dict(json)
    for name in ("data", "objective", "unet", "augmentation"):
        _require(isinstance(parts.get(name), dict), name, parts.get(name), "must be an object")
    parts |= {
        "data": _untagged(parts["data"], DATA_SOURCES, "data"),
        "objective": _untagged(parts["objective"], PRESETS, "objective"),
        "unet": config_from_diffusers(parts["unet"]),
        "augmentation": _record(Augmentation, parts["augmentation"], "augmentation"),
        "freeze": tuple(parts.get("freeze", ())),
        "gradient_checkpointing": _blocks(parts.get("gradient_checkpointing", False)),
    }
    return _record(TrainingConfig, parts, "config")


def with_settings(config: TrainingConfig, settings: Mapping[str, Any]) -> TrainingConfig:
    """`config` with fields of its JSON replaced, named by dotted paths: {"steps": 100, "objective.prediction": "v"}.

    Errors: `InvalidInput` for a path that leads nowhere; `ConfigError` for an impossible value.
    """
    json = config_to_json(config)
    for path, value in settings.items():
        *parents, last = path.split(".")
        node: Any = json
        for name in parents:
            node = node.get(name) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            names = f"one of {', '.join(node)}" if isinstance(node, dict) else "a path like objective.prediction"
            raise InvalidInput("setting", repr(path), names)
        node[last] = value
    return config_from_json(json)


def with_data(config: TrainingConfig, data: DataSource) -> TrainingConfig:
    """The same settings for other pictures."""
    return replace(config, data=data)


def _json_blocks(blocks: Checkpointing) -> bool | list[str]:
    return blocks if isinstance(blocks, bool) else list(blocks)


def _blocks(json: Any) -> Checkpointing:
    if isinstance(json, list) and all(isinstance(name, str) for name in json):
        return tuple(json)
    _require(isinstance(json, bool), "gradient_checkpointing", json, "must be true, false or names of blocks")
    return bool(json)


def _plain(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _tagged(record: Any, kinds: Mapping[str, type]) -> dict[str, Any]:
    kind = next(name for name, cls in kinds.items() if isinstance(record, cls))
    return {"kind": kind, **_plain(record)}


def _untagged(json: Mapping[str, Any], kinds: Mapping[str, Any], field: str) -> Any:
    kind = json.get("kind")
    _require(kind in kinds, f"{field}.kind", kind, f"must be one of {', '.join(kinds)}")
    return _record(kinds[str(kind)], {name: value for name, value in json.items() if name != "kind"}, field)


def _record(cls: Any, json: Mapping[str, Any], field: str) -> Any:
    known = {item.name for item in fields(cls)}
    for name in json:
        _require(name in known, f"{field}.{name}", json[name], f"is unknown; {field} has {', '.join(sorted(known))}")
    try:
        return cls(**json)
    except TypeError as err:  # a value that cannot even be compared, or a field left out
        raise ConfigError(field, dict(json), f"cannot be used ({err})") from err
    except InvalidInput as err:
        raise ConfigError(field, dict(json), str(err)) from err


def _require(holds: bool, field: str, value: object, rule: str) -> None:
    if not holds:
        raise ConfigError(field, value, rule)
