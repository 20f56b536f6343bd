"""Where the options of `undertow train lora`, `controlnet`, `image-prompt` and `distill` arrive."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.cli.options.arrival import ABSENT, LOADED, Boundary, Case, Command, case
from undertow.inspection.metrics import Metrics
from undertow.training.consistency import Tightening
from undertow.training.distillation_losses import ConsistencyTuning, GuidanceDistillation, LatentConsistency
from undertow.training.feature_distillation import FeatureDistillation
from undertow.training.log import StepRecord, append_record
from undertow.training.low_rank import TRANSFORMERS
from undertow.unet.config import CrossAttention, Level, Middle, UNetConfig
from undertow.unet.diffusers_config import config_to_diffusers

HINTS = (torch.zeros(3, 4, 4, dtype=torch.uint8),)
PICTURES = SimpleNamespace(captions=("red apple",), pixels=HINTS)
NATIVE = 64
"""The side of the pictures that the model was trained on."""


def common(at: Boundary) -> None:
    """A model that can be trained, in the folder `base`, and its pictures, of which nothing is looked at."""
    model = SimpleNamespace(path=Path("base"))
    Path("base/image_encoder").mkdir(parents=True)
    for name in ("mine", "old.safetensors", "vision"):
        Path(name).touch()
    Path("looks").mkdir()
    at.stand_in("undertow.loading.load", SimpleNamespace(model=model))
    at.stand_in("undertow.training.base_model.require_trainable", unnoted=("model",))
    at.stand_in("undertow.training.base_model.native_size", NATIVE, unnoted=("model",))
    at.stand_in("undertow.training.captioned.load_captioned", PICTURES)
    at.stand_in("undertow.training.captions.find_captions", unnoted=("folder",))
    at.stand_in("undertow.training.captioned.caption_notes", (), unnoted=("model", "pictures"))
    at.patch.setattr("torch.set_num_threads", lambda count: at.arrived.update(threads=count))


def standing_in(path: str, at: Boundary) -> None:
    """For a trainer: its settings and those of its run are noted field by field."""
    module, name = path.rsplit(".", 1)

    def train(model: Any, *others: Any, **named: Any) -> Any:
        settings = next(other for other in others if hasattr(other, "fit"))
        at.arrived |= {f"settings.{name}": value for name, value in vars(settings).items() if name != "fit"}
        at.arrived |= {f"fit.{name}": value for name, value in vars(settings.fit).items()}
        at.arrived["out"] = others[-1]
        at.arrived["beside"] = [other for other in others[:-1] if other is not settings]
        watching = ("on_resume", "on_record", "stop")
        at.arrived |= {name: value for name, value in named.items() if name not in watching}
        return SimpleNamespace(unet={}, for_text=lambda: None, parameters=lambda: ())

    at.patch.setattr(f"{module}.{name}", train)


def standing_in_for_the_sample(verb: str, at: Boundary) -> None:
    """Of a finished training: where its picture would be."""
    unnoted = ("console", "base", "pictures", "adapter")
    at.stand_in(f"undertow.cli.{verb}.draw_sample", unnoted=unnoted)


def written(at: Boundary) -> Callable[..., None]:
    """Stands in for what writes a file."""

    def write(trained: Any, path: Path, **how: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"trained")
        at.arrived |= {f"write.{name}": value for name, value in how.items()}

    return write


def arrives(out: str, **other: Any) -> dict[str, Any]:
    """Without options, but for `--images pictures`."""
    return {
        **LOADED,
        "load.source": "emoji",
        "load.dtype": torch.float32,
        "load.device": "cpu",
        "load_captioned.folder": Path("pictures"),
        "load_captioned.size": NATIVE,
        "fit.steps": 1000,
        "fit.batch_size": 4,
        "fit.optimizer": "adamw",
        "fit.warmup_steps": 100,
        "fit.decay": "trapezoid",
        "fit.weight_decay": 0.01,
        "fit.clip_norm": 1.0,
        "fit.betas": (0.9, 0.99),
        "fit.ema_decay": 0.99,
        "fit.precision": "float32",
        "fit.seed": 0,
        "fit.log_every": 10,
        "fit.checkpoint_every": 250,
        "fit.keep_checkpoints": 2,
        "settings.timesteps": "uniform",
        "settings.min_snr_gamma": None,
        "settings.gradient_checkpointing": False,
        "out": Path(out),
        **{name.replace("__", "."): value for name, value in other.items()},
    }


COMMON = (
    case("--images", "others", load_captioned__folder=Path("others")),
    case("--model", "mine", load__source="mine"),
    case("--steps", "70", fit__steps=70, fit__warmup_steps=7),
    case("--batch-size", "3", fit__batch_size=3),
    case("--learning-rate", "0.003", fit__learning_rate=0.003),
    case("--optimizer", "muon", fit__optimizer="muon"),
    case("--timesteps", "logit_normal", settings__timesteps="logit_normal"),
    case("--min-snr-gamma", "5.5", settings__min_snr_gamma=5.5),
    case("--size", "96", load_captioned__size=96),
    case("--seed", "13", fit__seed=13),
    case("--precision", "bf16", fit__precision="bf16"),
    case("--gradient-checkpointing", settings__gradient_checkpointing=True),
    case(
        "--recompute",
        "up_blocks.0",
        "--recompute",
        "mid_block",
        settings__gradient_checkpointing=("up_blocks.0", "mid_block"),
    ),
    case("--threads", "1", threads=1),
    case("--threads", "0", refused="--threads is '0', expected at least 1"),
    case("--checkpoint-every", "17", fit__checkpoint_every=17),
)
"""Those of all, where `--images` changes nothing beside the pictures' folder."""


def without(option: str, cases: tuple[Case, ...] = COMMON) -> tuple[Case, ...]:
    return tuple(one for one in cases if one.typed[0] != option)


START = SimpleNamespace(has_text=True, settings=lambda **given: {"alpha": 2.0, "sites": ("conv_in",)} | given_of(given))
"""A LoRA of rank 5 to go on with."""


def given_of(given: dict[str, Any]) -> dict[str, Any]:
    return {"rank": 5 if given["rank"] is None else given["rank"]}


def lora(at: Boundary) -> None:
    common(at)
    standing_in("undertow.training.lora.train_lora", at)

    def export_lora(*given: Any) -> None:
        at.arrived["title"] = given[-1]

    at.patch.setattr("undertow.training.lora_export.export_lora", export_lora)
    at.patch.setattr("undertow.adapters.lora.write.write_lora", written(at))
    standing_in_for_the_sample("train_lora", at)
    at.stand_in("undertow.training.lora_start.read_start", START, unnoted=("model",))


LORA = Command(
    verb=("train", "lora"),
    needed=("--images", "pictures"),
    boundary=lora,
    arrives=arrives(
        "runs/lora",
        fit__learning_rate=1e-4,
        settings__rank=8,
        settings__alpha=8.0,
        settings__sites=TRANSFORMERS,
        settings__text_encoder=False,
        settings__dropped=0.1,
        beside=[PICTURES],
        start=None,
        title="lora",
        write__format="kohya",
        draw_sample__file=Path("runs/lora/lora.png"),
        files=["runs/lora/lora.safetensors"],
    ),
    cases=(
        *COMMON,
        case("--out", "my/style", out=Path("my/style"), title="style", files=["my/style/style.safetensors"],
             draw_sample__file=Path("my/style/style.png")),
        case("--start-from", "old.safetensors", read_start__path=Path("old.safetensors"), start=START,
             settings__rank=5, settings__alpha=2.0, settings__sites=("conv_in",), settings__text_encoder=True),
        case("--no-sample", draw_sample__file=ABSENT),
        case("--rank", "3", settings__rank=3, settings__alpha=3.0),
        case("--alpha", "2.5", settings__alpha=2.5),
        case("--sites", "*.attn2.*", "--sites", "conv_in", settings__sites=("*.attn2.*", "conv_in")),
        case("--text-encoder", settings__text_encoder=True),
        case("--dropout-captions", "0.25", settings__dropped=0.25),
        case("--format", "peft", write__format="peft"),
        case("--title", "name", title="name", files=["runs/lora/name.safetensors"],
             draw_sample__file=Path("runs/lora/name.png")),
        case("--device", "meta", load__device="meta"),
    ),
)  # fmt: skip


def controlnet(at: Boundary) -> None:
    common(at)
    at.stand_in("undertow.training.paired_images.hints_for", HINTS)
    standing_in_for_the_sample("train_controlnet", at)
    standing_in("undertow.training.controlnet.train_controlnet", at)

    def write(trained: Any, folder: Path) -> Path:
        written(at)(trained, folder / "config.json")
        return folder

    at.patch.setattr("undertow.adapters.control.control_file.write_control", write)


CONTROLNET = Command(
    verb=("train", "controlnet"),
    needed=("--images", "pictures", "--hint", "canny"),
    boundary=controlnet,
    arrives=arrives(
        "runs/controlnet",
        fit__learning_rate=1e-5,
        settings__dropped=0.5,
        hints_for__pictures=PICTURES,
        hints_for__hint="canny",
        hints_for__folder=Path("pictures"),
        beside=[PICTURES, HINTS],
        draw_sample__file=Path("runs/controlnet/controlnet.png"),
        files=["runs/controlnet/controlnet/config.json"],
    ),
    cases=(
        *without("--images"),
        case("--images", "others", load_captioned__folder=Path("others"), hints_for__folder=Path("others")),
        case("--hint", "tile", hints_for__hint="tile"),
        case("--out", "my/edges", out=Path("my/edges"), files=["my/edges/edges/config.json"],
             draw_sample__file=Path("my/edges/edges.png")),
        case("--no-sample", draw_sample__file=ABSENT),
        case("--dropout-captions", "0.25", settings__dropped=0.25),
        case("--title", "name", files=["runs/controlnet/name/config.json"],
             draw_sample__file=Path("runs/controlnet/name.png")),
        case("--device", "meta", load__device="meta"),
    ),
)  # fmt: skip


ENCODER = SimpleNamespace(config=SimpleNamespace(image_size=32))


def image_prompt(at: Boundary) -> None:
    common(at)
    at.stand_in("undertow.adapters.image_prompt.encoder.load_image_encoder", ENCODER)
    at.stand_in("undertow.training.paired_images.load_paired_images", HINTS)
    standing_in_for_the_sample("train_image_prompt", at)
    standing_in("undertow.training.image_prompt.train_image_prompt", at)
    at.patch.setattr("undertow.adapters.image_prompt.image_prompt_file.write_image_prompt", written(at))


IMAGE_PROMPT = Command(
    verb=("train", "image-prompt"),
    needed=("--images", "pictures"),
    boundary=image_prompt,
    arrives=arrives(
        "runs/image-prompt",
        fit__learning_rate=1e-4,
        settings__variant="base",
        settings__tokens=4,
        settings__dropped_images=0.05,
        settings__dropped_captions=0.05,
        settings__dropped_both=0.05,
        beside=[ENCODER, PICTURES],
        references=None,
        draw_sample__file=Path("runs/image-prompt/image-prompt.png"),
        files=["runs/image-prompt/image-prompt.safetensors"],
    )
    | {
        "load_image_encoder.source": Path("base"),
        "load_image_encoder.dtype": torch.float32,
        "load_image_encoder.device": "cpu",
        "load_image_encoder.variant": None,
    },
    cases=(
        *COMMON,
        case("--encoder", "vision", load_image_encoder__source=Path("vision")),
        case("--references", "looks", references=HINTS, load_paired_images__folder=Path("looks"),
             load_paired_images__pictures=Path("pictures"), load_paired_images__size=32),
        case("--out", "my/look", out=Path("my/look"), files=["my/look/look.safetensors"],
             draw_sample__file=Path("my/look/look.png")),
        case("--no-sample", draw_sample__file=ABSENT),
        case("--variant", "plus", settings__variant="plus"),
        case("--variant", "full", settings__variant="full"),
        case("--tokens", "9", settings__tokens=9),
        case("--dropout-images", "0.11", settings__dropped_images=0.11),
        case("--dropout-captions", "0.12", settings__dropped_captions=0.12),
        case("--dropout-both", "0.13", settings__dropped_both=0.13),
        case("--title", "name", files=["runs/image-prompt/name.safetensors"],
             draw_sample__file=Path("runs/image-prompt/name.png")),
        case("--device", "meta", load__device="meta", load_image_encoder__device="meta"),
    ),
)  # fmt: skip


SMALL = UNetConfig(
    levels=(Level(channels=32, attention=CrossAttention(heads=2)),),
    middle=Middle(attention=CrossAttention(heads=2)),
    context_dim=8,
)


STUDENT = SimpleNamespace(config=SMALL, parameters=lambda: (torch.zeros(4),))
"""A pruned U-Net."""


def tuning(every: int) -> ConsistencyTuning:
    return ConsistencyTuning(tightening=Tightening(every=every, stages=8))


def distill(at: Boundary) -> None:
    common(at)
    Path("small.json").write_text(json.dumps(config_to_diffusers(SMALL)))
    standing_in("undertow.training.distillation.train_distilled", at)
    Path("pruned").mkdir()
    at.stand_in(
        "undertow.checkpoints.read.unet_loading.load_unet_folder", STUDENT, unnoted=("folder", "dtype", "device")
    )
    at.stand_in("undertow.cli.train_distill.draw_sample_of", unnoted=("console", "pictures"))

    def write(trained: Any, model: Any, method: Any, folder: Path) -> Path:
        written(at)(trained, folder / "model_index.json", method=method)
        return folder

    at.patch.setattr("undertow.training.distillation_export.write_distilled", write)


def taught(method: Any, **other: Any) -> dict[str, Any]:
    """Both what is trained and what is written of it."""
    return {"settings__method": method, "write__method": method, **other}


DISTILL = Command(
    verb=("train", "distill"),
    needed=("--images", "pictures", "--method", "ect"),
    boundary=distill,
    arrives=arrives(
        "runs/distilled",
        fit__learning_rate=1e-5,
        settings__method=tuning(125),
        start=None,
        beside=[PICTURES],
        write__method=tuning(125),
        draw_sample_of__folder=Path("runs/distilled/distilled"),
        draw_sample_of__file=Path("runs/distilled/distilled.png"),
        draw_sample_of__steps=4,
        draw_sample_of__guidance_scale=1.0,
        files=["runs/distilled/distilled/model_index.json"],
    ),
    cases=(
        *without("--steps"),
        case("--steps", "70", fit__steps=70, fit__warmup_steps=7, **taught(tuning(8))),
        case("--method", "guidance", **taught(GuidanceDistillation(guidance=5.0), draw_sample_of__steps=ABSENT)),
        case("--method", "lcm", "--guidance", "4.5", **taught(LatentConsistency(guidance=4.5))),
        case("--method", "lcm", "--original-steps", "20",
             **taught(LatentConsistency(guidance=5.0, original_steps=20))),
        case("--tighten-every", "9", **taught(tuning(9))),
        case("--method", "features", "--student", "small.json", draw_sample_of__guidance_scale=ABSENT,
             **taught(FeatureDistillation(unet=SMALL), draw_sample_of__steps=ABSENT)),
        case("--method", "features", "--student", "pruned", draw_sample_of__guidance_scale=ABSENT, start=STUDENT,
             **taught(FeatureDistillation(unet=SMALL), draw_sample_of__steps=ABSENT)),
        case("--out", "my/turbo", out=Path("my/turbo"), files=["my/turbo/turbo/model_index.json"],
             draw_sample_of__folder=Path("my/turbo/turbo"), draw_sample_of__file=Path("my/turbo/turbo.png")),
        case("--no-sample", draw_sample_of__folder=ABSENT, draw_sample_of__file=ABSENT, draw_sample_of__steps=ABSENT,
             draw_sample_of__guidance_scale=ABSENT),
        case("--title", "name", files=["runs/distilled/name/model_index.json"],
             draw_sample_of__folder=Path("runs/distilled/name"), draw_sample_of__file=Path("runs/distilled/name.png")),
        case("--device", "meta", load__device="meta"),
    ),
)  # fmt: skip


def metrics(at: Boundary) -> None:
    Path("run/training").mkdir(parents=True)
    record = StepRecord(step=10, loss=0.5, gradient_norm=2.0, learning_rate=1e-4, images_per_second=8.0, seconds=61.0)
    append_record(Path("run/training/log.jsonl"), record)
    at.stand_in("undertow.inspection.metrics.training_metrics", Metrics(model="run"))


METRICS = Command(
    verb=("train", "metrics"),
    arguments={"run": "run"},
    boundary=metrics,
    arrives={"files": []},
    cases=(
        case("--format", "json", training_metrics__run=Path("run")),
        case("--format", "yaml", refused="prometheus"),
    ),
)


def pruning(at: Boundary) -> None:
    common(at)
    at.patch.setattr("undertow.training.base_model.require_trainable", lambda model: (STUDENT, None))
    at.stand_in("undertow.training.pruning.prune.require_prunable", unnoted=("config", "settings"))
    found = SimpleNamespace(unet=STUDENT, removed=("a block",), error=0.5)
    at.stand_in("undertow.training.pruning.prune.prune", found, unnoted=("model", "on_stage"), apart=("settings",))
    at.stand_in("undertow.training.distillation_export.write_with_unet", unnoted=("model", "scheduler", "vae"))


PRUNE = Command(
    verb=("prune",),
    arguments={"model": "emoji", "out": "smaller"},
    needed=("--images", "pictures", "--width", "0.75"),
    boundary=pruning,
    arrives={
        **LOADED,
        "load.source": "emoji",
        "load.dtype": torch.float32,
        "load.device": "cpu",
        "load_captioned.folder": Path("pictures"),
        "load_captioned.size": NATIVE,
        "prune.pictures": PICTURES,
        "settings.width": 0.75,
        "settings.blocks": 0,
        "settings.batches": 16,
        "settings.batch_size": 4,
        "settings.seed": 0,
        "write_with_unet.unet": STUDENT,
        "write_with_unet.folder": Path("smaller"),
        "files": [],
    },
    cases=(
        case("--images", "others", load_captioned__folder=Path("others")),
        case("--width", "0.5", settings__width=0.5),
        case("--blocks", "2", settings__blocks=2),
        case("--batches", "3", settings__batches=3),
        case("--batch-size", "7", settings__batch_size=7),
        case("--size", "48", load_captioned__size=48),
        case("--seed", "5", settings__seed=5),
        case("--device", "meta", load__device="meta"),
        case("--threads", "2", threads=2),
    ),
)

COMMANDS = (LORA, CONTROLNET, IMAGE_PROMPT, DISTILL, PRUNE, METRICS)
