"""transformers' CLIPTokenizer with the official vocabulary, from the merges that instant-clip-tokenizer carries.

The package keeps the text of bpe_simple_vocab_16e6.txt in its compiled extension; ids follow from the merges' order.
"""

from functools import cache
from pathlib import Path

import instant_clip_tokenizer
from transformers import CLIPTokenizer

MERGES = 49152 - 256 - 2


@cache
def merges() -> tuple[tuple[str, str], ...]:
    extension = next(Path(instant_clip_tokenizer.__path__[0]).glob("*.so"))
    text = extension.read_bytes().split(b"#version: 0.2\n", 1)[1]
    lines = (line.decode().split(" ") for line in text.split(b"\n", MERGES)[:MERGES])
    return tuple((left, right) for left, right in lines)


@cache
def vocabulary() -> dict[str, int]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]
    entries = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges())]
    return {entry: n for n, entry in enumerate([*entries, "<|startoftext|>", "<|endoftext|>"])}


def reference_tokenizer(**special: str) -> CLIPTokenizer:
    return CLIPTokenizer(vocab=dict(vocabulary()), merges=list(merges()), **special)
