"""`undertow words`: what a small model can be asked for."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.columns import Columns

from undertow.cli.model_option import DEFAULT_MODEL, default_model
from undertow.cli.terminal import SafeConsole
from undertow.embedded import located
from undertow.errors import InvalidInput

if TYPE_CHECKING:
    from undertow.vocabulary import Vocabulary


def words(
    model: Annotated[str, typer.Argument(help="Embedded model, or the folder of one that has words.json.")] = (
        DEFAULT_MODEL
    ),
    like: Annotated[str | None, typer.Option(help="Only what is like this word, or has it in its name.")] = None,
) -> None:
    """Show the words that a model knows: what it draws, on which backgrounds, and how two things are placed."""
    vocabulary = _vocabulary(model)
    console = SafeConsole(highlight=False)
    names = vocabulary.emoji if like is None else _like(vocabulary, like.lower())
    characters = vocabulary.characters()
    shown = [f"{characters.get(name, ' ')} {name}" for name in names]
    console.print(f"draws {len(shown)}{'' if like is None else f' of {len(vocabulary.emoji)}, like {like!r}'}:")
    console.print(Columns(shown, padding=(0, 3), column_first=True), markup=False)
    if like is not None:
        return
    console.print(f"on the backgrounds {', '.join(vocabulary.colors)}")
    if vocabulary.relations:
        console.print(vocabulary.placing)
    first, second = (*names, *names)[:2]
    related = f" {vocabulary.relations[0]} {second}" if vocabulary.relations else ""
    background = f" on {vocabulary.colors[0]} background" if vocabulary.colors else ""
    example = f'try: undertow generate "{first}{related}{background}"' + (
        "" if model == default_model() else f" -m {model}"
    )
    console.print(example, markup=False, soft_wrap=True)


def _vocabulary(model: str) -> "Vocabulary":
    """Errors: `InvalidInput` for a model that has no list of words, `UnknownCheckpoint`, `CorruptFile`."""
    from undertow.checkpoints.files.place import local_path
    from undertow.checkpoints.files.words import WORDS, read_vocabulary

    place = located(model)
    local_path(place)
    folder = Path(place).expanduser()
    found = read_vocabulary(folder) if folder.is_dir() else None
    if found is None:
        expected = f"a model folder with {WORDS}"
        raise InvalidInput("model", repr(model), expected, "models without that list were trained on any words")
    return found


def _like(vocabulary: "Vocabulary", word: str) -> tuple[str, ...]:
    near = {word, *vocabulary.near(word)}
    found = tuple(name for name in vocabulary.emoji if word in name or near & {name, *name.split()})
    if not found:
        raise InvalidInput("--like", repr(word), "a word like those that the model knows", "undertow words lists all")
    return found
