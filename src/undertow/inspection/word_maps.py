"""Which part of a picture each word of its prompt drew: from maps of tokens to maps of words."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image
from torch import Tensor

from undertow.checkpoints.files.atomic import atomic_write, write_text
from undertow.doors import checked, nearest
from undertow.encoders.chunks import Token
from undertow.encoders.reading import PlaceKind, Reading
from undertow.encoders.text_stack import TextStack
from undertow.engine.result import GenerationResult
from undertow.errors import InvalidInput
from undertow.inspection.attention_choice import AttentionChoice
from undertow.inspection.attention_maps import TokenMaps
from undertow.inspection.heat_pictures import overlaid, sheet_of
from undertow.inspection.self_attention import SelfAttentionMaps
from undertow.pictures.names import PicturePlace

Pooling = Literal["mean", "sum", "max"]
"""What the maps of a word's pieces, or of the words of a phrase, become."""

Among = Literal["context", "words"]
"""What a share of attention is a share of: all tokens, marks and padding included, or those of the text alone."""

WordMap = Float32[np.ndarray, "height width"]

MARKS: Mapping[str, PlaceKind] = {"<start>": "start", "<end>": "end", "<padding>": "padding"}
"""What stands for them among words."""


@dataclass(frozen=True, kw_only=True)
class WordOptions:
    """words: of the prompt, or phrases of it; `None` for every word. pooling: of a word's pieces. among: what shares
    are shares of. marks: also maps of the start mark, the end marks and the padding, which take most of the attention
    and are left out otherwise."""

    words: tuple[str, ...] | None = None
    pooling: Pooling = "mean"
    among: Among = "context"
    marks: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureMaps:
    """One picture's maps. maps: by word, [height, width] of the latents: the share of attention that each cell pays to
    it. tokens: what they were pooled from. self_attention: by layer, if it was asked for."""

    image: Image.Image
    maps: Mapping[str, WordMap]
    tokens: Sequence[TokenMaps] = field(repr=False)
    self_attention: Sequence[SelfAttentionMaps] = field(default=(), repr=False)

    def overlay(self, *words: str) -> Image.Image:
        """A sheet: the picture, then the heat of each of these words over it, or of all. Colors go from 0 to the
        hottest cell of each word, which is written below it."""
        chosen = words or tuple(self.maps)
        for word in chosen:
            if word not in self.maps:
                raise InvalidInput("words", repr(word), "one that there is a map of", nearest(word, list(self.maps)))
        cells = [(word, overlaid(self.image, self.maps[word]), f"to {self.maps[word].max():.1%}") for word in chosen]
        factor = cells[0][1].width // self.image.width if cells else 1
        size = (self.image.width * factor, self.image.height * factor)
        plain = self.image.convert("RGB").resize(size, Image.Resampling.NEAREST)
        return sheet_of([("picture", plain, ""), *cells])

    def save_arrays(self, file: IO[bytes] | BytesIO) -> None:
        """Writes an .npz: an array for each word, `tokens` for all tokens of the first context, and the self-attention
        that was asked for."""
        arrays = {f"word {word}": heat for word, heat in self.maps.items()} | {"tokens": self.tokens[0].heat.numpy()}
        for each in self.self_attention:
            arrays |= {f"entropy {each.site}": each.entropy.numpy(), f"received {each.site}": each.received.numpy()}
        np.savez_compressed(file, allow_pickle=False, **arrays)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AttentionHeatmaps:
    """What `UNetService.visualize_attention` returns. result: the pictures, which maps change no bit of. pictures: the
    maps of each. A notebook shows the sheet of the first."""

    result: GenerationResult
    pictures: tuple[PictureMaps, ...]
    choice: AttentionChoice
    options: WordOptions

    @property
    def maps(self) -> Mapping[str, WordMap]:
        """By word, of the first picture."""
        return self.pictures[0].maps if self.pictures else {}

    def overlay(self, *words: str, picture: int = 0) -> Image.Image:
        """As `PictureMaps.overlay`."""
        return self.pictures[picture].overlay(*words)

    @checked
    def save(self, folder: str | Path, *, overwrite: bool = False) -> list[Path]:
        """Writes `attention-1.png` (the sheet), `attention-1.npz` (see `PictureMaps.save_arrays`) and
        `attention-1.json` (`described`) for the first picture, and so on. A name that exists counts up. Errors:
        `InvalidInput` for places that cannot be written."""
        place = PicturePlace.of(folder, "attention-{index}", overwrite=overwrite, arguments=("folder", "name"))
        paths: list[Path] = []
        for index, one in enumerate(self.pictures, start=1):
            with place.taken({"index": index}) as sheet, atomic_write(sheet) as draft:
                one.overlay().save(draft, format="PNG")
            arrays, described = sheet.with_suffix(".npz"), sheet.with_suffix(".json")
            with atomic_write(arrays) as draft, draft.open("wb") as file:
                one.save_arrays(file)
            write_text(json.dumps(self.described(index - 1), indent=2, ensure_ascii=False) + "\n", described)
            paths += [sheet, arrays, described]
        return paths

    def described(self, picture: int = 0) -> dict[str, Any]:
        """What was averaged, and what the tokens of a picture's prompt say."""
        one, request = self.pictures[picture], self.result.report.request
        return {
            "prompt": request.prompt,
            "seed": request.seeds[picture],
            "averaged": asdict(self.choice),
            "options": asdict(self.options),
            "words": {word: {"mean": float(heat.mean()), "max": float(heat.max())} for word, heat in one.maps.items()},
            "contexts": [_context(maps) for maps in one.tokens],
        }

    def _repr_png_(self) -> bytes | None:
        buffer = BytesIO()
        self.overlay().save(buffer, format="PNG")
        return buffer.getvalue()

    def __repr__(self) -> str:
        return f"<AttentionHeatmaps: {', '.join(self.maps)}; {len(self.pictures)} picture(s)>"


def _context(maps: TokenMaps) -> dict[str, Any]:
    reading = maps.reading
    assert reading is not None  # of a request's prompt
    words = [{"text": word.text, "positions": list(word.positions)} for word in reading.words]
    return {"branch": maps.branch, "steps": maps.steps, "kinds": list(reading.kinds), "words": words}


def require_words(options: WordOptions, readings: Sequence[Reading], text: TextStack, argument: str = "prompt") -> None:
    """Errors: `InvalidInput` for a word that is not in the prompt, and for a prompt that has none to draw a map of.
    argument: what the prompt is called."""
    known = list(dict.fromkeys(word.text for reading in readings for word in reading.words))
    if not known and options.words is None and not options.marks:
        raise InvalidInput(argument, "without a word", "words to draw maps of", "or marks, which every prompt has")
    for word in options.words or ():
        if word in MARKS or any(reading.positions_of(_pieces(word, text)) for reading in readings):
            continue
        expected = f"words that stand in the prompt one behind the other: {' '.join(known)}" if known else "a prompt"
        near = nearest(word, known)
        raise InvalidInput("words", repr(word), expected, near if near.startswith("did") else "")


def word_maps(tokens: Sequence[TokenMaps], options: WordOptions, text: TextStack) -> dict[str, WordMap]:
    """The map of each word: its pieces pooled, the mean over the times that it stands in the prompt, and over the
    contexts that it stands in, by their steps. Errors: `InvalidInput` for words that none of them has."""
    read = [(maps, maps.reading) for maps in tokens if maps.reading is not None]
    words = options.words
    if words is None:
        words = tuple(dict.fromkeys(word.text for _, reading in read for word in reading.words))
    found: dict[str, WordMap] = {}
    for word in (*words, *(tuple(MARKS) if options.marks else ())):
        heats = [(_heat(word, maps, reading, options, text), maps.steps) for maps, reading in read]
        each = [(heat, steps) for heat, steps in heats if heat is not None]
        if not each:
            raise InvalidInput("words", repr(word), "one that the prompt has in the steps that were looked at")
        total = sum(steps for _, steps in each)
        found[word] = torch.stack([heat * (steps / total) for heat, steps in each]).sum(0).numpy()
    return found


def _heat(word: str, maps: TokenMaps, reading: Reading, options: WordOptions, text: TextStack) -> Tensor | None:
    """A word's map in one context; `None` where it is not in it."""
    kind = MARKS.get(word)
    if kind is not None:
        positions = reading.positions_of_kind(kind)
        return maps.heat[list(positions)].sum(0) if positions else None
    times = reading.positions_of(_pieces(word, text))
    if not times:
        return None
    heat = torch.stack([_pooled(maps.heat[list(positions)], options.pooling) for positions in times]).mean(0)
    if options.among == "context":
        return heat
    said = maps.heat[list(reading.positions_of_kind("text"))].sum(0)
    return heat / said.clamp(min=torch.finfo(said.dtype).tiny)


def _pooled(heat: Tensor, pooling: Pooling) -> Tensor:
    match pooling:
        case "mean":
            return heat.mean(0)
        case "sum":
            return heat.sum(0)
        case "max":
            return heat.amax(0)


def _pieces(word: str, text: TextStack) -> tuple[Token, ...]:
    pieces = text.pieces(word)
    if not pieces:
        raise InvalidInput("words", repr(word), "a word of the prompt")
    return pieces
