"""`words.json` of a model folder: the vocabulary of a model that was trained with few words."""

import json
from dataclasses import asdict, fields
from pathlib import Path

from undertow.checkpoints.files.atomic import read_json, write_text
from undertow.errors import CorruptFile
from undertow.vocabulary import Vocabulary

WORDS = "words.json"
TOGETHER = "together"
"""The entry that is a number, and may be missing: before there was one, all models placed two things."""


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """The vocabulary of a model folder, if it has one. Errors: `CorruptFile`."""
    if not (folder / WORDS).is_file():
        return None
    content = read_json(folder / WORDS)
    names = [field.name for field in fields(Vocabulary) if field.name != TOGETHER]
    if not all(_is_texts(content.get(name)) for name in names):
        raise CorruptFile(folder / WORDS, f"not lists of words under {', '.join(names)}", "copy it again, or remove it")
    together = content.get(TOGETHER, Vocabulary.together)
    if type(together) is not int or together < Vocabulary.together:
        expected = f"{TOGETHER} is {together!r}, not a whole number of at least {Vocabulary.together}"
        raise CorruptFile(folder / WORDS, expected, "copy it again, or remove the entry")
    return Vocabulary(**{name: tuple(content[name]) for name in names}, together=together)


def write_vocabulary(vocabulary: Vocabulary, folder: Path) -> None:
    """Writes `words.json` into a model folder."""
    write_text(json.dumps(asdict(vocabulary), indent=1) + "\n", folder / WORDS)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
