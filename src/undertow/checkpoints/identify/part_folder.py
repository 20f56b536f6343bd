"""Opens a folder of which only the VAE or the text encoders are wanted: that of a pipeline, whatever its other networks
are and whether they are there, or that of the network itself."""

from pathlib import Path
from typing import Literal

from undertow.checkpoints.files.atomic import read_json
from undertow.checkpoints.files.model_folder import CONFIG, variant_order
from undertow.checkpoints.identify.checkpoint import Checkpoint, OpenOptions, PartSource
from undertow.checkpoints.identify.identification import Identification
from undertow.checkpoints.identify.pipeline_folder import part_source
from undertow.checkpoints.identify.prediction import Evidence
from undertow.checkpoints.identify.text_architecture import is_text_encoder, kind_of_text
from undertow.checkpoints.keymap.prefixes import Component, TextKind
from undertow.diffusion.schedules import NoiseSchedule
from undertow.errors import MissingComponent, naming_file
from undertow.vae.diffusers_config import AUTOENCODER, vae_config_from_diffusers

Wanted = Literal["vae", "text"]
TOKENIZER_FILES = ("vocab.json", "tokenizer.json")


def is_autoencoder(folder: Path) -> bool:
    """Whether a folder is an autoencoder's own."""
    return (folder / CONFIG).is_file() and read_json(folder / CONFIG).get("_class_name") == AUTOENCODER


def open_part_folder(folder: Path, wanted: Wanted, options: OpenOptions) -> Checkpoint:
    """The wanted parts of a folder. Errors: `MissingComponent` when it has none of them; those of `open_folder`."""
    variants = variant_order(options.variant, prefer_plain=options.prefer_plain)
    nothing = Evidence(value=False, evidence="no U-Net is read", confidence="assumed")
    parts: dict[Component, PartSource] = {}
    tokenizers: dict[TextKind, Path] = {}
    vae_config = None
    if wanted == "vae":
        place = _vae_folder(folder)
        parts["vae"] = part_source("vae", place, variants)
        with naming_file(place / CONFIG):
            vae_config = vae_config_from_diffusers(read_json(place / CONFIG))
    else:
        for place, kind in _text_folders(folder).items():
            parts[kind] = part_source(kind, place, variants)
            tokenizer = _tokenizer(place)
            if tokenizer is not None:
                tokenizers[kind] = tokenizer
    return Checkpoint(
        path=folder,
        identification=Identification(
            family="custom",
            variant="custom",
            title="parts of a pipeline",
            config=None,
            family_evidence=nothing.evidence,
            prediction=Evidence(value="epsilon", evidence=nothing.evidence, confidence="assumed"),
            zero_terminal_snr=nothing,
        ),
        schedule=NoiseSchedule.scaled_linear(),
        parts=parts,
        vae_config=vae_config,
        tokenizers=tokenizers,
    )


def _vae_folder(folder: Path) -> Path:
    if (folder / "vae" / CONFIG).is_file():
        return folder / "vae"
    if is_autoencoder(folder):
        return folder
    raise MissingComponent(folder, "VAE", "give a pipeline folder, or that of an AutoencoderKL")


def _text_folders(folder: Path) -> dict[Path, TextKind]:
    """The folders of CLIP text encoders, in the pipeline's order. Others, such as a T5, are passed over."""
    places = [folder / name for name in ("text_encoder", "text_encoder_2")] + [folder]
    configs = {place: read_json(place / CONFIG) for place in places if (place / CONFIG).is_file()}
    found: dict[Path, TextKind] = {}
    for place, config in configs.items():
        if is_text_encoder(config):
            found[place] = kind_of_text(place.name, config)
    if not found:
        raise MissingComponent(folder, "CLIP text encoder", "give a pipeline folder, or that of a CLIPTextModel")
    return found


def _tokenizer(text_encoder: Path) -> Path | None:
    """The folder of a text encoder's tokenizer: beside it, or the same."""
    beside = text_encoder.with_name(text_encoder.name.replace("text_encoder", "tokenizer"))
    return next(
        (place for place in (beside, text_encoder) if any((place / f).is_file() for f in TOKENIZER_FILES)), None
    )
