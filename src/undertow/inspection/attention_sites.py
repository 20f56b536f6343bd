"""Which attentions a pattern names, and which sizes their maps have. No torch: a service refuses before it loads."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from undertow.doors import nearest
from undertow.errors import InvalidInput


def matches(site: str, pattern: str) -> bool:
    """Whether a pattern with * and ? names an attention, or what it matches the beginning of, up to a dot."""
    return fnmatchcase(site, pattern) or fnmatchcase(site, f"{pattern}.*")


def require_layers(patterns: Sequence[str] | None, sites: Sequence[str]) -> None:
    """Errors: `InvalidInput` for a pattern that names none of these attentions, with a near name."""
    for pattern in patterns or ():
        if not any(matches(site, pattern) for site in sites):
            known = sorted({part for site in sites for part in (site, site.partition(".attentions")[0])})
            raise InvalidInput("layers", repr(pattern), "a pattern that matches an attention", nearest(pattern, known))


def require_cells(cells: Sequence[int] | None, sides: Iterable[int]) -> None:
    """Errors: `InvalidInput` where none of these sides is chosen, with those that there are."""
    there = sorted(set(sides))
    if cells is not None and not set(cells) & set(there):
        expected = f"sizes of these layers' maps: {', '.join(map(str, there))}"
        raise InvalidInput("cells", ", ".join(map(str, cells)), expected)
