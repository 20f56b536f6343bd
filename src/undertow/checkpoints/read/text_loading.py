"""Loads the text encoders of a checkpoint: which ones a family uses, and when each of their tensors is used."""

from collections.abc import Callable, Mapping
from pathlib import Path

from undertow.checkpoints.files.atomic import read_json
from undertow.checkpoints.files.model_folder import CONFIG
from undertow.checkpoints.files.words import read_vocabulary
from undertow.checkpoints.health import NEVER, Health, Use
from undertow.checkpoints.identify.checkpoint import Checkpoint, PartSource
from undertow.checkpoints.identify.self_description import described_text
from undertow.checkpoints.identify.text_architecture import layer_of, whole_layers
from undertow.checkpoints.keymap.prefixes import TextKind
from undertow.checkpoints.keymap.text_names import ROOT
from undertow.checkpoints.read.loading import LoadOptions, read_part
from undertow.encoders.clip import OutputSelection, TextEncoder
from undertow.encoders.text_stack import OUTPUT_SELECTIONS, TextStack
from undertow.encoders.tokenizer import FolderTokenizer
from undertow.errors import ConfigError, naming_file
from undertow.unet.config import UNetConfig


def read_text(checkpoint: Checkpoint, options: Mapping[TextKind, LoadOptions], health: Health) -> TextStack:
    """The text encoders of a family, all of which must be present. options: by kind, in the family's order."""
    kinds = tuple(options)
    encoders = [
        _read_encoder(checkpoint, kind, checkpoint.parts[kind], selection, options[kind], health)
        for kind, selection in zip(kinds, OUTPUT_SELECTIONS[kinds], strict=True)
    ]
    return TextStack(encoders, vocabulary=read_vocabulary(checkpoint.path))


def _read_encoder(
    checkpoint: Checkpoint,
    kind: TextKind,
    source: PartSource,
    selection: OutputSelection,
    options: LoadOptions,
    health: Health,
) -> TextEncoder:
    described = described_text(source.weights).get(kind)
    file = source.weights.path if source.folder is None else source.folder / CONFIG
    config = described if source.folder is None else read_json(file)
    with naming_file(file):
        use = _use(selection, whole_layers(kind, config))
    tensors = read_part(source, options, health, use=use)
    tokenizer = checkpoint.tokenizers.get(kind)
    with naming_file(file):
        return TextEncoder.from_tensors(
            kind,
            tensors,
            config=config,
            tokenizer=None if tokenizer is None else FolderTokenizer(tokenizer),
            device=options.device,
            source=source.weights.path,
            quantized=options.quantized,
        )


def require_text_width(path: Path, config: UNetConfig | None, text: TextStack | None) -> None:
    """Refuses text encoders whose output width is not the U-Net's. Errors: `ConfigError`."""
    if config is not None and text is not None and text.width != config.context_dim:
        said = f"does not fit the text encoders of {path}, which are {text.width} wide: they belong to another model"
        raise ConfigError("context_dim", config.context_dim, said)


def _use(selection: OutputSelection, layers: int) -> Callable[[str], Use]:
    """When each tensor of a text encoder is used, by its name. layers: of the whole network, including omitted ones."""

    def use(name: str) -> Use:
        if name == "text_projection.weight":
            return None if selection.pooled else NEVER
        if name.startswith(f"{ROOT}final_layer_norm."):
            return None if selection.pooled or selection.final_norm else NEVER
        layer = layer_of(name)
        if layer is None or selection.pooled:
            return None
        latest = layers - layer
        return latest if latest >= selection.skip else NEVER

    return use
