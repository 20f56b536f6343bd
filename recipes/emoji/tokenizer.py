"""The words of the captions, and the model's own tokenizer, to which each of them is one token."""

from pathlib import Path

from recipes.emoji.names import COLORS, EMOJI
from recipes.emoji.scenes import RELATIONS, Mix
from undertow.encoders.learn_tokenizer import learn_tokenizer
from undertow.vocabulary import Vocabulary

POSITIONS = 32
"""Tokens of a prompt, with both marks: the longest caption has 18."""


def known_words() -> tuple[str, ...]:
    """Every word that captions have, sorted."""
    texts = (*EMOJI, *COLORS, *RELATIONS, "on a an background")
    return tuple(sorted({word for text in texts for word in text.split()}))


def vocabulary(mix: Mix) -> Vocabulary:
    """What travels with the model, so that it can name words that it does not know. mix: of its training scenes."""
    return Vocabulary(
        words=known_words(), emoji=EMOJI, colors=tuple(COLORS), relations=RELATIONS, together=mix.together
    )


def save_tokenizer(folder: Path) -> None:
    """Learns the tokenizer and writes it. Errors: `MissingDependency`."""
    learn_tokenizer(known_words(), folder, positions=POSITIONS)
