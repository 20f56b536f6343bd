"""Prompt dialects by name: the only place where a name becomes a parser, and the rules that come with it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from undertow.diffusion.lookup import look_up
from undertow.encoders.prompts import a1111, comfy, compel, plain
from undertow.encoders.prompts.tree import ParsedPrompt
from undertow.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """A syntax, and how the tool it comes from encodes what it reads.

    parse_literal: the same where weights are switched off and written characters are text. emphasis: name in
    `undertow.encoders.emphasis.EMPHASIS`. comma_backtrack: when a chunk is full, what follows the last comma among this
    many tokens moves to the next. keep_together: a text of fewer tokens is not divided between chunks. merge:
    neighboring texts of equal weight are tokenized as one.
    """

    parse: Callable[[str], ParsedPrompt]
    parse_literal: Callable[[str], ParsedPrompt] = plain.parse
    emphasis: str
    comma_backtrack: int = 0
    keep_together: int = 0
    merge: bool = True


DIALECTS: dict[str, Dialect] = {
    "plain": Dialect(parse=plain.parse, emphasis="ignore"),
    "a1111": Dialect(
        parse=a1111.parse,
        parse_literal=partial(a1111.parse, emphasis=False),
        emphasis="original",
        comma_backtrack=20,
    ),
    "comfy": Dialect(parse=comfy.parse, emphasis="lerp", keep_together=8, merge=False),
    "compel": Dialect(parse=compel.parse, emphasis="compel"),
}


def find_dialect(name: str) -> Dialect:
    """The dialect called `name`. Errors: `InvalidInput` offers the nearest names."""
    return look_up(DIALECTS, name, "dialect")


def parse_prompt(text: str, dialect: str = "plain", *, emphasis: bool = True) -> ParsedPrompt:
    """The tree of a prompt. Without `emphasis`, weights are not read and their characters are text.

    Errors: `PromptError` names the place that cannot be read; `InvalidInput` for unknown dialects and for characters
    that are half of a pair (lone surrogates), which no encoder takes.
    """
    entry = find_dialect(dialect)
    try:
        text.encode()
    except UnicodeEncodeError as err:
        place = err.start
        raise InvalidInput(
            "prompt", f"not Unicode at character {place}", "text", "remove the lone surrogate there"
        ) from err
    return entry.parse(text) if emphasis else entry.parse_literal(text)
