"""CLIP's byte-pair encoding from the files of a tokenizer's folder, by the library that transformers itself uses.

transformers' class is not needed for it, and takes two seconds to import.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from undertow.limits import JSON_BYTES

WORD_END = "</w>"
"""Ends the last token of a word."""

BOS, EOS = "<|startoftext|>", "<|endoftext|>"

DEFAULT_MARKS: Mapping[str, str | None] = {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS}
"""transformers', where a folder names none."""

WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""Where CLIP divides a text before it looks at pairs (openai/CLIP, simple_tokenizer.py)."""

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """ids: by token. merges: pairs of tokens, the first to be merged first. added: words with ids of their own behind
    those, and how they are found in a text, in the order of their ids."""

    ids: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    added: Mapping[str, Mapping[str, Any]]


def read_vocabulary(folder: Path) -> Vocabulary:
    """From `tokenizer.json`, else from `vocab.json`, `merges.txt` and `added_tokens.json`.

    Errors: whatever damage brings about: `OSError`, `ValueError`, `LookupError`, `TypeError`, `AttributeError`.
    """
    whole = folder / "tokenizer.json"
    if whole.is_file():
        content = _json(whole)
        ids, pairs = content["model"]["vocab"], content["model"]["merges"]
        added = {entry["content"]: entry for entry in content.get("added_tokens", [])}
    else:
        ids = _json(folder / "vocab.json")
        lines = _text(folder / "merges.txt").splitlines()
        pairs = [line for line in lines if line and not line.startswith("#version")]
        added = {word: {"id": index} for word, index in _optional(folder / "added_tokens.json").items()}
    merges: Any = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in pairs]
    behind = {word: entry for word, entry in added.items() if word not in ids}
    return Vocabulary(
        ids=ids, merges=merges, added=dict(sorted(behind.items(), key=lambda item: int(item[1].get("id", 0))))
    )


def read_marks(folder: Path) -> dict[str, str | None]:
    """The tokens around a text and behind it, by transformers' names. Errors: as `read_vocabulary`."""
    named = {**DEFAULT_MARKS}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        given = _optional(folder / file)
        named |= {name: _content(given[name]) for name in DEFAULT_MARKS if name in given}
    return named


def build_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """As transformers' CLIPTokenizer is built. Errors: as `read_vocabulary`."""
    model = BPE(
        vocab=dict(vocabulary.ids),
        merges=list(vocabulary.merges),
        continuing_subword_prefix="",
        end_of_word_suffix=WORD_END,
        fuse_unk=False,
        unk_token=EOS,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for word, entry in vocabulary.added.items():
        tokenizer.add_tokens([AddedToken(word, **{flag: bool(entry.get(flag, False)) for flag in FLAGS})])
        if tokenizer.token_to_id(word) != entry["id"]:
            raise ValueError(f"the id of {word!r} is {entry['id']}, not the next one")
    tokenizer.encode_special_tokens = True  # a token that only pads is a word where it is written in a text
    return tokenizer


def _json(file: Path) -> dict[str, Any]:
    content = json.loads(_text(file))
    if not isinstance(content, dict):
        raise ValueError(f"{file.name} is no JSON object")
    return content


def _text(file: Path) -> str:
    if not file.is_file():
        raise ValueError(f"{file.name} is no file")
    if (size := file.stat().st_size) > JSON_BYTES.most:
        raise ValueError(f"{file.name} has {size:,} bytes, and {JSON_BYTES.most:,} are allowed; {JSON_BYTES.remedy}")
    return file.read_text(encoding="utf-8")


def _optional(file: Path) -> dict[str, Any]:
    return _json(file) if file.is_file() else {}


def _content(token: Any) -> str | None:
    """A token as transformers writes it: as text, or as an object with its flags."""
    return token["content"] if isinstance(token, dict) else token
