"""A LoRA file opened: what its tensors are called, and where its strength is written."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from undertow.adapters.files.opened import LORA_FILES, OpenedAdapter
from undertow.adapters.lora.leaves import Layer, LoraNames, read_lora_names
from undertow.adapters.lora.lora_refusals import require_lora
from undertow.adapters.lora.numbered import module_classes
from undertow.adapters.lora.peft import PeftSettings, settings_of_config, settings_of_header
from undertow.checkpoints.files.atomic import read_json
from undertow.checkpoints.files.weights import Weights
from undertow.errors import CorruptFile, UnsafeFile

PEFT_CONFIG = "adapter_config.json"

MATCHED_CHARACTERS = 4_000_000
"""Characters of names times patterns with wildcards: a few seconds. SDXL's layers have 60,000."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LoraFile:
    """The names and settings of a LoRA file. path: as messages name it. settings: PEFT's, by the prefix of the layers
    they apply to. module_classes: of numbered layers, see `numbered.py`. config: the file that PEFT's settings were
    read from, if there is one."""

    path: Path
    weights: Weights
    names: LoraNames
    settings: Mapping[str, PeftSettings]
    module_classes: Mapping[str, tuple[str, ...]]
    config: Path | None = None

    @classmethod
    def of(cls, opened: OpenedAdapter) -> "LoraFile":
        """Sorts the names of an opened file and finds its settings. Errors: `UnsafeFile` for a pickle,
        `UnsupportedModel` for what is not a LoRA, `UnknownCheckpoint`, `CorruptFile`."""
        if opened.pickled:
            problem = "this LoRA is a pickle, which can run code when it is read"
            raise UnsafeFile(
                opened.path, problem, "load it with torch on a machine you trust, and save it as safetensors"
            )
        names = read_lora_names(opened.tensors, opened.weights.metadata)
        require_lora(opened.weights, names)
        settings = settings_of_header(opened.path, opened.weights.metadata)
        beside = opened.path.with_name(PEFT_CONFIG)
        config = beside if beside.is_file() and (opened.folder or opened.path.name == LORA_FILES[0]) else None
        if config is not None:
            settings[""] = settings_of_config(config, read_json(config))
        _require_quick_matching(opened.path, settings, names)
        return cls(
            path=opened.path,
            weights=opened.weights,
            names=names,
            settings=settings,
            module_classes=module_classes(opened.path, opened.weights.metadata, list(names.layers)),
            config=config,
        )

    def settings_for(self, layer: Layer) -> PeftSettings | None:
        """The settings that apply to one layer: those with the longest matching prefix."""
        prefixes = [prefix for prefix in self.settings if layer.stem.startswith(prefix)]
        if not prefixes:
            return None
        settings = self.settings[max(prefixes, key=len)]
        return None if settings.loose and not layer.from_peft else settings


def _require_quick_matching(path: Path, settings: Mapping[str, PeftSettings], names: LoraNames) -> None:
    wildcards = sum(each.alphas.wildcards + each.ranks.wildcards for each in settings.values())
    if wildcards * sum(map(len, names.layers)) > MATCHED_CHARACTERS:
        problem = f"{wildcards} name patterns with wildcards for {len(names.layers):,} layers"
        raise CorruptFile(path, problem, "write out the layers' names")
