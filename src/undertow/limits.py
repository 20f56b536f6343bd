"""How much a file or a request from a stranger may ask for: one table, read at every door before anything is built.

Each limit is far above what published models and real requests need. The environment variable that its refusal names
replaces it; on the command line, so does `[limits]` in undertow.toml.
"""

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from undertow.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The most that is read, built or drawn of one kind of thing. of: what is counted. usual: the limit unless the
    user sets another."""

    name: str
    usual: int
    of: str

    @property
    def variable(self) -> str:
        """The environment variable that replaces it."""
        return f"UNDERTOW_MAX_{self.name.upper()}"

    @property
    def most(self) -> int:
        """The limit that holds now. Errors: `InvalidInput` for a variable that is no number."""
        given = os.environ.get(self.variable, "")
        if given and not (given.isdecimal() and int(given) > 0):
            raise InvalidInput(self.variable, repr(given), "a whole number above 0", f"for example {self.usual}")
        return int(given) if given else self.usual

    @property
    def remedy(self) -> str:
        """How to raise it, as the end of a sentence."""
        return f"set {self.variable} higher if you trust it"

    @property
    def rule(self) -> str:
        """The limit and how to raise it, as the end of a `ConfigError`."""
        return f"must be at most {self.most:,} {self.of}; {self.remedy}"

    def require(self, argument: str, count: int, shown: str | None = None, *, instead: str = "") -> None:
        """Refuses more than the limit. argument, shown: what the error names, and how it shows the value. instead: what
        else the user can do. Errors: `InvalidInput`."""
        if count > self.most:
            value = f"{count:,}" if shown is None else shown
            remedy = f"{instead}, or {self.remedy}" if instead else self.remedy
            raise InvalidInput(argument, value, f"at most {self.most:,} {self.of}", remedy)


LARGEST_SCALE = 1_000_000
"""Of guidance, an adapter, a word's weight and whatever else multiplies numbers of a network: far above what draws
anything. What is larger ends in numbers that are not finite; in types of half the size, on the way there."""

PIXELS = Limit(name="pixels", usual=2**26, of="pixels")
"""Of a picture that is read, or made by `undertow preprocess`: 8192 x 8192, 256 MB once it is decoded."""

PROMPT_BYTES = Limit(name="prompt_bytes", usual=16 * 1024, of="bytes")
"""Of a prompt in UTF-8: some 3,000 words, or 40 chunks for the text encoder."""

TOKENS = Limit(name="tokens", usual=2**15, of="tokens")
"""Of a prompt in all its chunks, padding included: 425 chunks of CLIP."""

STEPS = Limit(name="steps", usual=100_000, of="steps")
"""Of a sampling grid, the longer one whose end a strength takes ("comfy") included. ComfyUI allows 10,000."""

COUNT = Limit(name="count", usual=100_000, of="pictures")
"""Of one request."""

CELLS = Limit(name="cells", usual=1_000, of="pictures on one sheet")
"""Of `undertow compare`, and of `undertow sample` for each class."""

PARTS = Limit(name="parts", usual=100, of="regions or adapters")
"""Of one request: each region is a row of every forward."""

TIMESTEPS = Limit(name="timesteps", usual=100_000, of="timesteps")
"""That a model was trained with. Published models have 1,000, and some pixel models 4,000."""

LAYERS = Limit(name="layers", usual=1_000, of="layers")
"""Of one network: ResBlocks and transformer blocks. SDXL's U-Net has 87."""

WIDTH = Limit(name="width", usual=2**20, of="channels, features or rows")
"""Of one side of a layer: channels, features, heads, classes, words of a vocabulary. The widest in use have 49,408."""

TENSORS = Limit(name="tensors", usual=50_000, of="tensors")
"""Of one file. SDXL with both text encoders has 2,515."""

NAME_LENGTH = Limit(name="name_length", usual=1_000, of="characters")
"""Of a tensor's name. The longest in use have 150."""

HEADER_BYTES = Limit(name="header_bytes", usual=16 * 2**20, of="bytes")
"""Of the header of a safetensors or GGUF file. SDXL's has 330 KB."""

JSON_BYTES = Limit(name="json_bytes", usual=16 * 2**20, of="bytes")
"""Of a JSON file of a model: configs, and indices of shards."""

TEXT_BYTES = Limit(name="text_bytes", usual=16 * 2**20, of="bytes")
"""Of a file of prompts, of wildcards or of a tokenizer's words."""

EMBEDDING_BYTES = Limit(name="embedding_bytes", usual=16 * 2**20, of="bytes")
"""Of a textual inversion. They have a few kilobytes, or a megabyte with all 75 vectors."""

PICKLE_RATIO = Limit(name="pickle_ratio", usual=10, of="times the bytes of the file")
"""Of the tensors in a pickle: views of the same numbers, and compressed ones, can be far larger than their file."""

FOLDER_FILES = Limit(name="folder_files", usual=10_000, of="files")
"""Of a folder that is taken for a model or an adapter."""

LIMITS: Mapping[str, Limit] = {
    limit.name: limit
    for limit in (
        PIXELS,
        PROMPT_BYTES,
        TOKENS,
        STEPS,
        COUNT,
        CELLS,
        PARTS,
        TIMESTEPS,
        LAYERS,
        WIDTH,
        TENSORS,
        NAME_LENGTH,
        HEADER_BYTES,
        JSON_BYTES,
        TEXT_BYTES,
        EMBEDDING_BYTES,
        PICKLE_RATIO,
        FOLDER_FILES,
    )
}
"""Every limit by its name."""


@contextmanager
def replaced(given: Mapping[str, int]) -> Generator[None]:
    """Sets limits until the block ends, those that the environment sets already aside. given: by name. Errors:
    `InvalidInput` for a limit that there is none of."""
    for name, most in given.items():
        if name not in LIMITS:
            raise InvalidInput("limits", repr(name), f"one of {', '.join(LIMITS)}")
        if most < 1:
            raise InvalidInput(f"limits.{name}", most, "a whole number above 0", f"usual: {LIMITS[name].usual}")
    variables = {LIMITS[name].variable: str(most) for name, most in given.items()}
    added = {name: value for name, value in variables.items() if not os.environ.get(name)}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
