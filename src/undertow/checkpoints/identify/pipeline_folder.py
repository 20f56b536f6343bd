"""Opens a diffusers folder: a pipeline with `model_index.json`, or the folder of a single U-Net."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from undertow.checkpoints.files.atomic import read_json
from undertow.checkpoints.files.model_folder import CONFIG, PLAIN, find_unet_folder, folder_weights, variant_order
from undertow.checkpoints.identify.checkpoint import Checkpoint, OpenOptions, PartSource
from undertow.checkpoints.identify.families import describe_family
from undertow.checkpoints.identify.identification import Identification
from undertow.checkpoints.identify.prediction import Evidence
from undertow.checkpoints.identify.text_architecture import kind_of_text
from undertow.checkpoints.identify.unsupported import refuse_other_parts, refuse_other_pipelines, refuse_quantized
from undertow.checkpoints.keymap.contents import make_part
from undertow.checkpoints.keymap.prefixes import TEXT_WIDTHS, Component, TextKind
from undertow.diffusion.parameterizations import PARAMETERIZATIONS
from undertow.diffusion.scheduler_config import SchedulerConfig
from undertow.diffusion.schedules import NoiseSchedule, Schedule
from undertow.errors import MissingComponent, UnknownCheckpoint, naming_file
from undertow.known_names import Prediction, parse_prediction
from undertow.schedulers.samplers import folder_sampler
from undertow.unet.config import UNetConfig
from undertow.unet.diffusers_config import config_from_diffusers
from undertow.vae.config import VAEConfig
from undertow.vae.diffusers_config import vae_config_from_diffusers

INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"


def open_folder(folder: Path, options: OpenOptions) -> Checkpoint:
    """Opens a pipeline folder or a model folder.

    Errors: `UnknownCheckpoint`, `UnsupportedModel`, `ConfigError`, `CorruptFile`, `UnsafeFile`, `MissingComponent`.
    """
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else None
    if index is not None:
        refuse_other_pipelines(folder, index)
    unet_folder = folder if (folder / CONFIG).is_file() else folder / "unet"
    if not (unet_folder / CONFIG).is_file():
        raise UnknownCheckpoint(folder, f"no {CONFIG}, no unet/{CONFIG}", "give a diffusers model or pipeline folder")
    config = read_config(folder) if options.config is None else options.config
    scheduler = read_json(folder / SCHEDULER) if (folder / SCHEDULER).is_file() else None
    with naming_file(folder / SCHEDULER):
        prediction, schedule = _mathematics(config, scheduler, options)
    family, variant, title, evidence = describe_family(config)
    return Checkpoint(
        path=folder,
        identification=Identification(
            family=family,
            variant=variant,
            title=title,
            config=config,
            family_evidence=evidence,
            prediction=prediction,
            zero_terminal_snr=Evidence(
                value=isinstance(schedule, NoiseSchedule) and schedule.zero_terminal_snr,
                evidence="no scheduler_config.json" if scheduler is None else "scheduler_config.json",
                confidence="assumed" if scheduler is None else "certain",
            ),
        ),
        schedule=schedule,
        sampler=folder_sampler(scheduler, None if index is None else str(index.get("_class_name"))),
        parts=_parts(folder, unet_folder, options),
        vae_config=_vae_config(folder / "vae"),
        tokenizers={
            kind: folder / name.replace("text_encoder", "tokenizer")
            for name, kind in _text_kinds(folder).items()
            if (folder / name.replace("text_encoder", "tokenizer")).is_dir()
        },
    )


def read_config(folder: str | Path) -> UNetConfig:
    """The architecture in a diffusers model folder, or in the `unet` folder of a pipeline.

    Errors: `UnknownCheckpoint`, `CorruptFile`, `ConfigError`; those of `refuse_other_parts`.
    """
    file = find_unet_folder(Path(folder)) / CONFIG
    described = read_json(file)
    if file.parent == Path(folder):
        refuse_other_parts(file.parent, described)
    with naming_file(file):
        return config_from_diffusers(described)


def _parts(folder: Path, unet_folder: Path, options: OpenOptions) -> dict[Component, PartSource]:
    variants = variant_order(options.variant, prefer_plain=options.prefer_plain)
    parts: dict[Component, PartSource] = {
        "unet": _ema_source(folder, unet_folder) if options.ema else part_source("unet", unet_folder, variants)
    }
    if (folder / "vae" / CONFIG).is_file():
        parts["vae"] = part_source("vae", folder / "vae", variants)
    for name, kind in _text_kinds(folder).items():
        parts[kind] = part_source(kind, folder / name, variants)
    return parts


def part_source(component: Component, folder: Path, variants: tuple[str, ...]) -> PartSource:
    """The weights of one network's folder. Errors: `UnknownCheckpoint`, `UnsafeFile`, `CorruptFile`,
    `UnsupportedModel`."""
    weights = folder_weights(folder, variants)
    refuse_quantized(weights.path, weights.tensors, weights.metadata)
    dialect = "transformers" if component in TEXT_WIDTHS.values() else "diffusers"
    part = make_part(component, "", dialect, {name: name for name in weights.tensors})
    return PartSource(weights=weights, part=part, folder=folder)


def _ema_source(folder: Path, unet_folder: Path) -> PartSource:
    """The U-Net's averaged weights, as diffusers' training scripts save them: in a folder or a variant of that name."""
    if (folder / "unet_ema" / CONFIG).is_file():
        return part_source("unet", folder / "unet_ema", (PLAIN,))
    try:
        return part_source("unet", unet_folder, ("ema",))
    except UnknownCheckpoint as err:
        known = "published folders usually hold the averaged weights as the plain ones: load with `ema=False`"
        raise MissingComponent(folder, "averaged (EMA) weights by that name", known) from err


def _text_kinds(folder: Path) -> dict[str, TextKind]:
    """The kind of each text encoder's folder, by its width; for unpublished widths by its position in the pipeline."""
    names = [name for name in ("text_encoder", "text_encoder_2") if (folder / name / CONFIG).is_file()]
    found: dict[str, TextKind] = {}
    for name in names:
        with naming_file(folder / name / CONFIG):
            found[name] = kind_of_text(name, read_json(folder / name / CONFIG))
    return found


def _vae_config(folder: Path) -> VAEConfig | None:
    if not (folder / CONFIG).is_file():
        return None
    with naming_file(folder / CONFIG):
        return vae_config_from_diffusers(read_json(folder / CONFIG))


def _mathematics(
    config: UNetConfig, scheduler: Mapping[str, Any] | None, options: OpenOptions
) -> tuple[Evidence[Prediction], Schedule]:
    """The prediction type and noise schedule: as given, from `scheduler_config.json`, or the defaults."""
    schedule: Schedule = NoiseSchedule.scaled_linear()
    said: Evidence[Prediction] = Evidence(value="epsilon", evidence="no scheduler_config.json", confidence="assumed")
    if scheduler is not None:
        name = str(scheduler.get("_class_name"))
        if name.startswith("EDM"):
            said = Evidence(value="edm", evidence=f"scheduler_config.json: {name}", confidence="certain")
        else:
            read = SchedulerConfig.from_diffusers(scheduler)
            schedule = read.schedule
            value = next(key for key, kind in PARAMETERIZATIONS.items() if kind == read.parameterization)
            said = Evidence(
                value=parse_prediction(value),
                evidence=f"scheduler_config.json: prediction_type = {scheduler.get('prediction_type', 'epsilon')}",
                confidence="certain",
            )
    elif config.context_dim is None:
        schedule = NoiseSchedule.linear()
    if options.prediction is not None:
        given = parse_prediction(options.prediction)
        said = Evidence(value=given, evidence="given by the caller", confidence="given")
    if options.zero_terminal_snr is not None and isinstance(schedule, NoiseSchedule):
        plain = NoiseSchedule(betas=schedule.betas, steps=schedule.steps)
        schedule = plain.rescale_zero_terminal_snr() if options.zero_terminal_snr else plain
    return said, schedule
