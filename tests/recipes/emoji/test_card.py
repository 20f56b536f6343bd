"""The card of the model: true of the edition that it describes."""

import pytest

from recipes.emoji.card import TEXT_TO_IMAGE, Stage, card
from recipes.emoji.editions import CRISP, FIRST, Edition


def stages(*names: str) -> list[Stage]:
    """Each with a hundred steps more than the one before."""
    return [
        Stage(name=name, parameters=1_000, steps=100 * number, batch_size=8, seconds=3600.0)
        for number, name in enumerate(names, 1)
    ]


@pytest.mark.parametrize(
    ("edition", "said", "unsaid"),
    [
        (
            FIRST,
            ("64x64 pixels", "or two of them", "three or more", "detail is less than 64 pixels"),
            ("128", "two or"),
        ),
        (CRISP, ("128x128 pixels", "or two or three of them", "four or more", "detail is less than 128"), ("64",)),
    ],
)
def test_size_and_number_of_emoji_are_the_edition_s(edition: Edition, said, unsaid):
    text = card(stages("autoencoder", TEXT_TO_IMAGE), edition)
    for words in said:
        assert words in text
    for words in unsaid:
        assert words not in text


@pytest.mark.parametrize(
    ("names", "edition", "command"),
    [
        (("autoencoder", TEXT_TO_IMAGE, "pairs"), FIRST, "python -m recipes.emoji train --steps 200"),
        ((TEXT_TO_IMAGE, "details", "pairs"), CRISP, "python -m recipes.emoji train --crisp --steps 100"),
    ],
)
def test_the_command_counts_the_steps_of_the_text_to_image_stage(names, edition, command):
    """Wherever it stands: an autoencoder that was trained before has no line."""
    assert f"reproduced by `{command}`" in card(stages(*names), edition)
