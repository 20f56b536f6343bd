"""`undertow.toml`: what a user would otherwise type again and again.

    model = "dream"                      # in place of the embedded model, where --model is not given
    folders = ["~/models", "~/loras"]    # where models and adapters are looked for by their names
    out = "~/pictures"                   # of generate, as are the names of its files
    name = "{seed}-{prompt}"

    [models]                             # short names
    dream = "~/models/dreamshaper_8.safetensors"

    [limits]                             # see docs/guides/security.md
    pixels = 100_000_000

    [serve]                              # see docs/guides/service.md
    port = 8188

    [presets.portrait]                   # undertow generate --preset portrait: options by their names
    size = "512x768"
    steps = 30
    lora = ["film@0.6"]

The file is that of the environment's UNDERTOW_CONFIG, else the one in the working folder, else
~/.config/undertow/undertow.toml.
"""

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from undertow.cli.config_file import FILE, config_file
from undertow.errors import InvalidInput, in_plain_words
from undertow.limits import TEXT_BYTES
from undertow.lookup import did_you_mean
from undertow.records import Record

ENDINGS = ("", ".safetensors", ".ckpt")
"""Of names in the folders, with which they are looked for in this order."""

MODEL_VERBS: Mapping[str, tuple[str, ...]] = {
    "compare": (),
    "maps": (),
    "adapters": ("explain", "impact"),
    "train": ("lora", "controlnet", "image-prompt", "distill"),
}
"""Verbs, and those of groups, whose --model is the default model; `generate` asks a picture first (--from)."""


@dataclass(frozen=True, kw_only=True)
class Config(Record):
    """What a config file says. Errors: `InvalidInput`."""

    model: str | None = None
    """The model that is used where none is named; the embedded one when `None`."""
    folders: tuple[str, ...] = ()
    """Folders in which models and adapters are looked for by their names."""
    out: str | None = None
    """Where `undertow generate` writes."""
    name: str | None = None
    """Names of the files that `undertow generate` writes."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Short names of models and adapters, and their places."""
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings of `undertow generate` by their names: options without the dashes in front."""

    serve: Mapping[str, Any] = field(default_factory=dict)
    """How `undertow serve` is set up; see docs/guides/service.md."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """How much files and requests may ask for, by the names of `undertow.limits`; the environment counts more."""

    def find(self, name: str) -> str:
        """The place of what is called so here; the name itself where nothing is. An existing path is what it is."""
        if Path(name).expanduser().exists():
            return name
        if name in self.models:
            return str(Path(self.models[name]).expanduser())
        places = (Path(folder).expanduser() / f"{name}{ending}" for folder in self.folders for ending in ENDINGS)
        return next((str(place) for place in places if place.exists()), name)

    def preset(self, name: str) -> Mapping[str, Any]:
        """Errors: `InvalidInput` for a name that the file does not have."""
        if name not in self.presets:
            known = ", ".join(self.presets) or f"none is in {FILE}"
            raise InvalidInput("--preset", repr(name), "a preset", f"{did_you_mean(name, self.presets)}known: {known}")
        return self.presets[name]

    def defaults(self) -> dict[str, Any]:
        """Values of options that were not typed, by verb."""
        written = {"out": self.out, "name": self.name}
        found: dict[str, Any] = {"generate": {key: value for key, value in written.items() if value is not None}}
        if self.model is not None:
            named = {"model": self.model}
            found |= {verb: dict.fromkeys(inner, named) if inner else named for verb, inner in MODEL_VERBS.items()}
        return found


def read_config() -> Config:
    """What the user's file says; nothing where there is none. Errors: `InvalidInput` names the file."""
    file = config_file()
    if file is None:
        return Config()
    if file.exists() and not file.is_file():
        raise InvalidInput(str(file), "a folder, a pipe or a device", "a text file")
    if file.exists():
        TEXT_BYTES.require(str(file), file.stat().st_size)
    try:
        return Config.from_json(tomllib.loads(file.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as err:  # of TOML, of UTF-8, of numbers that are too long
        if isinstance(err, InvalidInput):
            raise InvalidInput(f"{err.argument} in {file}", err.value, err.expected, err.remedy) from err
        expected = "a file as docs/guides/first-steps.md shows"
        raise InvalidInput(str(file), "no TOML", expected, in_plain_words(err)) from err


def preset_settings(name: str, options: Collection[str]) -> Mapping[str, Any]:
    """The settings of a preset, by option. options: that there are, without the dashes in front. Errors:
    `InvalidInput` for a preset, or an option in it, that there is none of."""
    settings = read_config().preset(name)
    for option in settings:
        if option not in options:
            near = did_you_mean(option, options)
            where = f"[presets.{name}] of {config_file()}"
            raise InvalidInput(where, repr(option), "options of undertow generate", f"{near}see generate --help")
    return settings
