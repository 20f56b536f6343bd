"""What a record refuses about a field, as a sentence about the option that it was typed with."""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager

from undertow.errors import ConfigError, InvalidInput

EXPECTED = (
    ("must be positive", "a positive number"),
    ("must be ", ""),
    ("must lie ", "a number "),
    ("must not be ", "a number that is not "),
)
"""How a rule begins, and how what is expected does."""


def options_of(parameters: Iterable[str]) -> dict[str, str]:
    """The options that typer makes of a verb's parameters, by parameter."""
    return {name: f"--{name.replace('_', '-')}" for name in parameters}


@contextmanager
def naming_options(options: Mapping[str, str]) -> Generator[None]:
    """Stands around what makes records of options: an error about a field names its option. options: by field. What
    stands in a file keeps its field's name. Errors: `InvalidInput`, `ConfigError`."""
    try:
        yield
    except ConfigError as err:
        option = None if err.file is not None else options.get(err.field)
        if option is None:
            raise
        for begins, expects in EXPECTED:
            if err.rule.startswith(begins):
                rest = err.rule.removeprefix(begins)
                raise InvalidInput(option, _typed(err.value), f"{expects}{rest}") from err
        raise ConfigError(option, err.value, err.rule) from err
    except InvalidInput as err:
        if type(err) is not InvalidInput or err.argument not in options:
            raise
        raise InvalidInput(options[err.argument], err.value, err.expected, err.remedy) from err


def _typed(value: object) -> str:
    """A value as it was typed, in quotes."""
    return repr(f"{value:g}" if isinstance(value, float) else str(value))
