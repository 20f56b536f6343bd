"""A LoRA file opened: where it lies, what its tensors are called, where its strength is written."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from undertow.adapters.lora.base_model import require_lora
from undertow.adapters.lora.leaves import Layer, Names, read_names
from undertow.adapters.lora.peft import PeftSettings, settings_of_config, settings_of_header
from undertow.checkpoints.files.atomic import read_json
from undertow.checkpoints.files.locate import locate
from undertow.checkpoints.files.weights import Weights, open_weights
from undertow.errors import UnknownCheckpoint, UnsafeFile

CONFIG = "adapter_config.json"
FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""What PEFT and diffusers call the file in a folder of theirs."""

CONVERT = "load it with torch on a machine you trust, and save it as safetensors"

PICKLES = ("adapter_model.bin", "pytorch_lora_weights.bin")


@dataclass(frozen=True, kw_only=True, eq=False)
class LoraFile:
    """path: as messages name it. settings: PEFT's, by the prefix of the layers that they are for."""

    path: Path
    weights: Weights
    names: Names
    settings: Mapping[str, PeftSettings]
    config: Path | None = None

    def settings_for(self, layer: Layer) -> PeftSettings | None:
        """What is written apart from the tensors about one layer; the nearest prefix counts."""
        prefixes = [prefix for prefix in self.settings if layer.stem.startswith(prefix)]
        if not prefixes:
            return None
        settings = self.settings[max(prefixes, key=len)]
        return None if settings.loose and not layer.from_peft else settings

    def content_hash(self) -> str:
        """SHA-256 of everything that is read: the file, and PEFT's config beside it."""
        digest = hashlib.sha256()
        for path in (self.weights.path, *(() if self.config is None else (self.config,))):
            with path.open("rb") as file:
                while chunk := file.read(2**20):
                    digest.update(chunk)
        return digest.hexdigest()


def open_lora(source: str | Path) -> LoraFile:
    """The adapter at `source`: a safetensors file, a folder of PEFT's or diffusers', or a file on the Hub.

    Errors: `UnknownCheckpoint`, `UnsafeFile`, `CorruptFile`, and `UnsupportedModel` for what is no LoRA.
    """
    place = locate(source)
    path = _file_in(place) if place.is_dir() else place
    config = path.with_name(CONFIG)
    try:
        weights = open_weights(path)
    except UnsafeFile as err:
        raise UnsafeFile(
            path, err.problem, "load it with torch on a machine you trust, and save it as safetensors"
        ) from err
    names = read_names(weights.tensors)
    require_lora(weights, names)
    settings = settings_of_header(path, weights.metadata)
    beside = config.is_file() and (place.is_dir() or path.name == FILES[0])
    if beside:
        settings[""] = settings_of_config(config, read_json(config))
    return LoraFile(path=path, weights=weights, names=names, settings=settings, config=config if beside else None)


def _file_in(folder: Path) -> Path:
    for name in (*FILES, *PICKLES):
        if (folder / name).is_file():
            return folder / name
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        problem = f"a folder with {len(files)} safetensors files, none of them {' or '.join(FILES)}"
        raise UnknownCheckpoint(folder, problem, "give the file itself")
    return files[0]
