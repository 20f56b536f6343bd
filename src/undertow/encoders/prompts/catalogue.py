"""Prompt dialects by name: the only place where a name becomes a parser, and the rules that come with it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from undertow.encoders.prompts import a1111, comfy, compel, plain
from undertow.encoders.prompts.tree import ParsedPrompt
from undertow.lookup import look_up
from undertow.prompt_text import require_prompt


@runtime_checkable
class Parser(Protocol):
    """Reads a prompt. Without `emphasis`, weights are text; without `composition`, so is what joins several prompts
    that are each guided by themselves."""

    def __call__(self, text: str, *, emphasis: bool, composition: bool) -> ParsedPrompt: ...


def _weights_alone(parse: Callable[[str], ParsedPrompt]) -> Parser:
    """The parser of a syntax that has weights and no composition."""

    def read(text: str, *, emphasis: bool, composition: bool) -> ParsedPrompt:  # noqa: ARG001  # there is none to read
        return parse(text) if emphasis else plain.parse(text)

    return read


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """A syntax, and how the tool it comes from encodes what it reads.

    emphasis: name in `undertow.encoders.emphasis.EMPHASIS`. comma_backtrack: when a chunk is full, what follows the
    last comma among this many tokens moves to the next. keep_together: a text of fewer tokens is not divided between
    chunks. merge: neighboring texts of equal weight are tokenized as one. embeddings: what of a textual inversion is
    found: "words" that are its name, also within a text, and it is never divided between chunks; or "syntax" alone,
    and it is divided like a text.
    """

    parse: Parser
    emphasis: str
    comma_backtrack: int = 0
    keep_together: int = 0
    merge: bool = True
    embeddings: Literal["words", "syntax"] = "words"


DIALECTS: dict[str, Dialect] = {
    "plain": Dialect(parse=_weights_alone(plain.parse), emphasis="ignore"),
    "a1111": Dialect(parse=a1111.parse, emphasis="original", comma_backtrack=20),
    "comfy": Dialect(
        parse=_weights_alone(comfy.parse), emphasis="lerp", keep_together=8, merge=False, embeddings="syntax"
    ),
    "compel": Dialect(parse=_weights_alone(compel.parse), emphasis="compel"),
}


def find_dialect(name: str) -> Dialect:
    """The dialect called `name`. Errors: `InvalidInput` offers the nearest names."""
    return look_up(DIALECTS, name, "dialect")


def parse_prompt(text: str, dialect: str = "plain", *, emphasis: bool = True, composition: bool = True) -> ParsedPrompt:
    """The tree of a prompt. Without `emphasis`, weights are not read and their characters are text; without
    `composition`, the same holds of AND and of the weight behind a whole prompt, as in A1111's negative prompts.

    Errors: `PromptError` names the place that cannot be read; `InvalidInput` for unknown dialects, and for what is no
    prompt in any (see `require_prompt`).
    """
    entry = find_dialect(dialect)
    require_prompt("prompt", text)
    return entry.parse(text, emphasis=emphasis, composition=composition)
