"""Textual inversions: named vectors that stand in a prompt where a word would (arXiv:2208.01618)."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from undertow.encoders.clip_config import Kind
from undertow.encoders.prompts.tree import Embedding, Node, Text, find_all
from undertow.errors import InvalidInput

_FILE_KEYS: dict[str, Kind] = {"clip_g": "openclip_g"}
"""What files call an encoder, where it differs: `{clip_l, clip_g}` of SDXL."""

_SUFFIXES = (".safetensors", ".pt", ".bin")

Vectors = Float[Tensor, "vectors dim"]


class Inversions:
    """The textual inversions that a stack of encoders knows, by name and by encoder.

    widths: of each encoder's token embeddings. longest: how many vectors fit into a chunk. Names are found in prompts
    whatever their case, since tokenizers do not keep it. revision: changes with every change.
    """

    def __init__(self, widths: Mapping[Kind, int], longest: int):
        self._widths = dict(widths)
        self._longest = longest
        self._vectors: dict[str, dict[Kind, Vectors]] = {}
        self._files: dict[str, Path] = {}
        self._pattern: re.Pattern[str] | None = None
        self.revision = 0

    def __iter__(self) -> Iterator[str]:
        return iter(self._vectors)

    def add(self, name: str, vectors: Tensor | Mapping[str, Tensor], file: Path | None = None) -> None:
        """Makes `name` stand for `vectors`, [vectors, dim] or [dim]; for two encoders a mapping by kind.

        file: what they were read from.

        Errors: `InvalidInput` for an empty name, a missing encoder, another width, more vectors than a chunk holds,
        and for what is not finite.
        """
        key = name.strip().lower()
        if not key:
            raise InvalidInput("name", repr(name), "the name of an embedding")
        by_kind = self._by_kind(vectors)
        for kind, width in self._widths.items():
            if kind not in by_kind:
                raise InvalidInput(
                    f"embedding {name!r}",
                    f"for {', '.join(by_kind)}",
                    f"vectors for {kind} too",
                    "pass {kind: vectors}",
                )
            found = by_kind[kind]
            if found.ndim != 2 or found.shape[1] != width or not 1 <= found.shape[0] <= self._longest:
                raise InvalidInput(
                    f"embedding {name!r} for {kind}",
                    f"of shape {list(found.shape)}",
                    f"1 to {self._longest} vectors of {width} numbers",
                    "it was trained for another model" if found.shape[-1] != width else "",
                )
            if not bool(found.isfinite().all()):
                raise InvalidInput(
                    f"embedding {name!r} for {kind}", "not finite", "finite numbers", "the file is damaged"
                )
        self._vectors[key] = {kind: by_kind[kind].detach() for kind in self._widths}
        if file is None:
            self._files.pop(key, None)
        else:
            self._files[key] = file
        self._changed()

    def remove(self, name: str) -> None:
        """Forgets `name`. Errors: `InvalidInput` when it is not known."""
        key = name.strip().lower()
        if key not in self._vectors:
            raise InvalidInput("name", repr(name), f"one of {', '.join(self._vectors) or 'no embeddings at all'}")
        del self._vectors[key]
        self._files.pop(key, None)
        self._changed()

    def find(self, name: str) -> str | None:
        """The known name that `name` means, with or without a file's suffix."""
        key = name.strip().lower()
        for suffix in ("", *_SUFFIXES):
            if key.removesuffix(suffix) in self._vectors:
                return key.removesuffix(suffix)
        return None

    def named_in(self, tree: Node, *, in_texts: bool) -> frozenset[str]:
        """The known names that a parsed prompt asks for. in_texts: whether a name in plain text counts."""
        asked = [self.find(leaf.name) for leaf in find_all(tree, Embedding)]
        if in_texts:
            split = [part for leaf in find_all(tree, Text) for part in self.split(leaf.text)]
            asked += [part.name for part in split if isinstance(part, Embedding)]
        return frozenset(name for name in asked if name is not None)

    def alike(self, name: str) -> frozenset[str]:
        """The names with the same vectors as `name`, itself among them; nothing for an unknown one."""
        own = self._vectors.get(self.find(name) or "", {})
        places = {kind: vectors.data_ptr() for kind, vectors in own.items()}
        return frozenset(
            other
            for other, found in self._vectors.items()
            if own and places == {kind: vectors.data_ptr() for kind, vectors in found.items()}
        )

    def vectors(self, name: str, kind: Kind) -> Vectors:
        """The vectors of a known name."""
        return self._vectors[name][kind]

    def file(self, name: str) -> Path | None:
        """The file that a known name was read from, if it was."""
        return self._files.get(name)

    def split(self, text: str) -> list[Text | Embedding]:
        """The text with every known name that stands alone in it taken for the embedding."""
        if self._pattern is None:
            return [Text(text)]
        parts: list[Text | Embedding] = []
        position = 0
        for match in self._pattern.finditer(text):
            parts += [Text(text[position : match.start()]), Embedding(match[0].lower())]
            position = match.end()
        return [part for part in (*parts, Text(text[position:])) if part != Text("")]

    def _by_kind(self, vectors: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        if isinstance(vectors, Tensor):
            if len(self._widths) > 1:
                raise InvalidInput(
                    "vectors", "one tensor", f"a mapping with {', '.join(self._widths)}", "each encoder has its own"
                )
            vectors = dict.fromkeys(self._widths, vectors)
        return {_FILE_KEYS.get(key, key): value[None] if value.ndim == 1 else value for key, value in vectors.items()}

    def _changed(self) -> None:
        self.revision += 1
        names = sorted(self._vectors, key=len, reverse=True)
        choice = "|".join(re.escape(name) for name in names)
        self._pattern = re.compile(rf"(?<!\w)(?:{choice})(?!\w)", re.IGNORECASE) if names else None
