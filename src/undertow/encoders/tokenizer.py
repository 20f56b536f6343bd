"""Text to token ids and back: the checkpoint's own tokenizer, or the official CLIP vocabulary."""

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from undertow.encoders.clip_config import CLIP_VOCABULARY
from undertow.encoders.tokenizer_files import WORD_END, build_tokenizer, read_marks, read_vocabulary
from undertow.errors import CorruptFile, UnknownCheckpoint
from undertow.extras import optional_package

BOS, EOS = CLIP_VOCABULARY - 2, CLIP_VOCABULARY - 1
"""Ids of `<|startoftext|>` and `<|endoftext|>` in the official vocabulary."""

_SPECIAL = re.compile(r"(<\|startoftext\|>|<\|endoftext\|>)")


@runtime_checkable
class Tokenizer(Protocol):
    """Byte-pair encoding of CLIP (arXiv:2103.00020, section 2.4): text in, ids out, without the marks around it.

    bos, eos: ids of the marks. pad: the id that fills a chunk up, where the checkpoint names one; None leaves it to the
    encoder's kind. Marks written out in a text become their ids, as in every tool.
    """

    @property
    def bos(self) -> int: ...
    @property
    def eos(self) -> int: ...
    @property
    def pad(self) -> int | None: ...

    def encode(self, text: str) -> list[int]:
        """Ids of the tokens of `text`."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the tokens, lower case, words apart."""
        ...


class OfficialTokenizer:
    """The vocabulary of openai/CLIP (49,408 entries), carried by the package instant-clip-tokenizer: no download.

    Gives the ids of transformers' CLIPTokenizer. Errors: `MissingDependency`.
    """

    bos = BOS
    eos = EOS
    pad = None

    def __init__(self) -> None:
        with optional_package("instant-clip-tokenizer"):
            import instant_clip_tokenizer  # noqa: PLC0415  not there for every Python
        self._tokenizer: Any = instant_clip_tokenizer.Tokenizer()  # pyright: ignore[reportAttributeAccessIssue]  compiled

    def encode(self, text: str) -> list[int]:
        """Ids of the tokens of `text`."""
        return _around_marks(text, lambda part: self._tokenizer.encode(_normalized(part)), self.bos, self.eos)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the tokens, lower case, words apart."""
        return self._tokenizer.decode(list(ids)).strip()


class FolderTokenizer:
    """A tokenizer as transformers saves it: `tokenizer.json`, or `vocab.json` and `merges.txt`.

    Like transformers' CLIPTokenizer, it takes vocabulary, merges and added words from the files, and how a text is
    divided from CLIP. The padding token that the folder names is used for padding only. diffusers also turns it into
    padding where it is part of a prompt, which costs SD2 and SDXL the exclamation mark (diffusers issue 4153).

    Errors: `UnknownCheckpoint`, `CorruptFile`.
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise UnknownCheckpoint(
                folder, "no tokenizer", "a folder with tokenizer.json, or vocab.json and merges.txt"
            )
        try:
            self._tokenizer = build_tokenizer(read_vocabulary(folder))
            marks = read_marks(folder)
            self.bos, self.eos = self._id(marks["bos_token"]), self._id(marks["eos_token"])
            self.pad = None if marks["pad_token"] is None else self._id(marks["pad_token"])
        except Exception as err:  # whatever a damaged file brings about here and in the library
            raise CorruptFile(folder, f"not a tokenizer ({err})", "copy or download it again") from err

    def encode(self, text: str) -> list[int]:
        """Ids of the tokens of `text`."""
        return _around_marks(
            text, lambda part: self._tokenizer.encode(part, add_special_tokens=False).ids, self.bos, self.eos
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the tokens, lower case, words apart."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False).replace(WORD_END, " ").strip()

    def rules(self) -> tuple[dict[str, int], list[tuple[str, str]]]:
        """Ids by token, and the pairs that are merged, in their order: all that a tokenizer elsewhere needs."""
        return self._tokenizer.get_vocab(), [
            tuple(pair) for pair in json.loads(self._tokenizer.to_str())["model"]["merges"]
        ]

    def _id(self, token: str | None) -> int:
        found = None if token is None else self._tokenizer.token_to_id(token)
        if found is None:
            raise ValueError(f"its vocabulary lacks {token}")
        return found


def _around_marks(text: str, encode: Callable[[str], list[int]], bos: int, eos: int) -> list[int]:
    ids: list[int] = []
    for index, part in enumerate(_SPECIAL.split(text)):
        if index % 2 == 0:
            ids += encode(part)
        else:
            ids.append(bos if part == "<|startoftext|>" else eos)
    return ids


def _normalized(text: str) -> str:
    """As transformers normalizes: NFC, then lower case one character at a time (a Greek sigma never becomes final)."""
    return "".join(character.lower() for character in unicodedata.normalize("NFC", text))
