r"""Choices within prompts, made anew for each picture.

    {red|green} apple      one of the options; {2::red|green} takes red twice as often
    {2$$red|green|blue}    two of them with a comma between; {2$$ and $$red|green|blue} with other words between
    {2$$__animal__}        two lines of a file
    {1-2$$red|green|blue}  one or two of them; {-2$$...} and {2-$$...} from one on, and up to all
    __animal__             a line of FOLDER/animal.txt; __pets/cat__ of FOLDER/pets/cat.txt; lines may hold choices
    __pets/*__             a line of any file that matches; ** is of folders within folders too
    \{ \}                  the brace itself

The syntax is that of sd-dynamic-prompts (docs/SYNTAX.md), of which ComfyUI has the first form. Choices have a
seed of their own: the same one makes the same choices for the same pictures, whatever their noise.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from itertools import islice
from pathlib import Path
from random import Random

from undertow.errors import InvalidInput
from undertow.limits import PROMPT_BYTES, TEXT_BYTES

MAX_DEPTH = 16
"""Choices within choices, and files that name files."""

MOST_LISTED = 1000
SHOWN = 60
"""Characters of a text that a message shows."""

ENDING = ".txt"

_NAME = re.compile(r"__([^\s_](?:[^\s_]|_(?!_)){0,200})__")
_SYNTAX = re.compile(rf"\\[{{}}]|[{{}}|]|{_NAME.pattern}")
_WEIGHT = re.compile(r"\s*(\d{1,6}(?:\.\d{1,6})?)::")
_SEVERAL = re.compile(r"\s*(?:(\d{1,3})|(\d{0,3})-(\d{0,3}))\$\$(?:([^$]{0,40})\$\$)?")


def has_choices(text: str) -> bool:
    """Whether a prompt holds what `Wildcards` would replace."""
    return re.search(r"\{[^{}]*\|", text) is not None or _NAME.search(text) is not None


@dataclass(frozen=True, kw_only=True)
class Wildcards:
    """folder: of the files with lines to choose from; `None` for choices in braces alone. seed: of the choices."""

    folder: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.folder is not None and not self.folder.is_dir():
            raise InvalidInput("--wildcards", str(self.folder), f"a folder with {ENDING} files, a choice on each line")

    def chosen(self, text: str, picture: int, *, of: str = "prompt") -> str:
        """The prompt of a picture, counted from 0. of: which of its texts, as each chooses for itself.

        Errors: `InvalidInput` for a file that is not there, choices nested too deep, and a result that is too long.
        """
        generator = Random(f"{self.seed} {picture} {of}")
        return _Chooser(self, generator).chosen(text, 0)

    def lines(self, name: str) -> Sequence[str]:
        """What a file offers: its lines without blank ones and those that begin with #. Errors: `InvalidInput`."""
        if self.folder is None:
            raise InvalidInput(f"__{name}__", "in the prompt", "a folder with its lines", "give it by --wildcards")
        inside = ".." not in Path(name).parts and not Path(name).is_absolute()
        if inside and "*" in name:
            return self._lines_of_any(name)
        path = self.folder / f"{name}{ENDING}"
        if not inside or not path.is_file():
            known = sorted(file.stem for file in islice(self.folder.glob(f"*{ENDING}"), MOST_LISTED))
            near = get_close_matches(name, known, n=3)
            remedy = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(known[:8]) or 'none'}"
            raise InvalidInput(f"__{name}__", "in the prompt", f"a file {name}{ENDING} in {self.folder}", remedy)
        lines = self._lines_of(path)
        if not lines:
            raise InvalidInput(f"__{name}__", "in the prompt", f"lines in {path}", "it is empty")
        return lines

    def _lines_of(self, path: Path) -> Sequence[str]:
        """Errors: `InvalidInput` for a link out of the folder, which may come from a stranger."""
        assert self.folder is not None
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise InvalidInput("--wildcards", str(path), "a file in the folder", "it is a link that leads out of it")
        return _lines(path)

    def _lines_of_any(self, pattern: str) -> Sequence[str]:
        """The lines of all files whose names match, in the order of these. Errors: `InvalidInput`."""
        assert self.folder is not None
        # In pathlib ** stands for folders alone and by itself, in sd-dynamic-prompts for files in them too.
        parts = [part if part == "**" else re.sub(r"\*+", "*", part) for part in pattern.split("/")]
        wanted = "/".join([*parts, "*"] if parts[-1] == "**" else parts)
        matching = islice(self.folder.glob(f"{wanted}{ENDING}"), MOST_LISTED)
        lines = [line for path in sorted(matching) if path.is_file() for line in self._lines_of(path)]
        if not lines:
            raise InvalidInput(f"__{pattern}__", "in the prompt", f"a file in {self.folder} that matches and has lines")
        return lines


@dataclass(kw_only=True)
class _Group:
    """Braces that are open. options: in each, texts and names that are not looked up yet."""

    options: list[list["str | _Group | _Named"]] = field(default_factory=lambda: [[]])


@dataclass(frozen=True)
class _Named:
    name: str


class _Chooser:
    """Makes the choices of one text, from left to right; what is not chosen is not looked up."""

    def __init__(self, wildcards: Wildcards, generator: Random):
        self.wildcards = wildcards
        self.generator = generator
        self.left_bytes = PROMPT_BYTES.most

    def chosen(self, text: str, depth: int) -> str:
        return self._joined(_parsed(text), depth)

    def _joined(self, parts: "list[str | _Group | _Named]", depth: int) -> str:
        if depth > MAX_DEPTH:
            raise InvalidInput(
                "wildcards", f"more than {MAX_DEPTH} within one another", "fewer", "a file names itself?"
            )
        return "".join(self._one(part, depth) for part in parts)

    def _one(self, part: "str | _Group | _Named", depth: int) -> str:
        match part:
            case _Named(name):
                return self.chosen(self.generator.choice(self.wildcards.lines(name)).strip(), depth + 1)
            case _Group():
                return self._of(part, depth)
            case text:
                self.left_bytes -= len(text.encode(errors="replace"))
                if self.left_bytes < 0:
                    raise InvalidInput("the chosen prompt", "too long", f"at most {PROMPT_BYTES.most:,} bytes")
                return text

    def _of(self, group: _Group, depth: int) -> str:
        options = [list(option) for option in group.options]
        several = _taken(options[0], _SEVERAL)
        if several is not None and len(options) == 1 and (name := _only_name(options[0])) is not None:
            options = [_parsed(line.strip()) for line in self.wildcards.lines(name)]
        weights = [1.0 if (found := _taken(option, _WEIGHT)) is None else float(found[1]) for option in options]
        if not any(weights):
            raise InvalidInput("wildcards", "options that all weigh 0", "one that weighs more")
        between = "" if several is None else ", " if several[4] is None else several[4]
        count = 1 if several is None else self._count(several, len(options))
        picked: list[int] = []
        while len(picked) < min(count, sum(weight > 0 for weight in weights)):
            left = [0.0 if index in picked else weight for index, weight in enumerate(weights)]
            picked += self.generator.choices(range(len(options)), left)
        return between.join(self._joined(options[index], depth + 1) for index in picked)

    def _count(self, several: "re.Match[str]", options: int) -> int:
        """How many are taken: the number, or one of a range."""
        if several[1] is not None:
            return int(several[1])
        fewest, most = int(several[2] or 1), min(int(several[3] or options), options)
        return self.generator.randint(min(fewest, most), most)


def _parsed(text: str) -> "list[str | _Group | _Named]":
    """Texts, names and groups; braces without a choice in them are text. Errors: `InvalidInput` for choices whose brace
    is not closed."""
    open_groups: list[_Group] = [_Group()]
    position = 0
    for match in _SYNTAX.finditer(text):
        here = open_groups[-1].options[-1]
        here.append(text[position : match.start()])
        position = match.end()
        match match[0]:
            case "{":
                if len(open_groups) > MAX_DEPTH:
                    raise InvalidInput("wildcards", f"more than {MAX_DEPTH} braces within one another", "fewer")
                open_groups.append(_Group())
            case "|" if len(open_groups) > 1:
                open_groups[-1].options.append([])
            case "}" if len(open_groups) > 1:
                group = open_groups.pop()
                open_groups[-1].options[-1] += [group] if _chooses(group) else ["{", *group.options[0], "}"]
            case "\\{" | "\\}":
                here.append(match[0][1])
            case found if match[1] is not None:
                here.append(_Named(match[1]))
            case found:
                here.append(found)
    open_groups[-1].options[-1].append(text[position:])
    while len(open_groups) > 1:
        unclosed = open_groups.pop()
        if len(unclosed.options) > 1:
            start = "{" + "|".join(
                option[0] if option and isinstance(option[0], str) else "" for option in unclosed.options
            )
            raise InvalidInput(
                "wildcards", f"{start[:SHOWN]!r}, which is not closed", "a } behind it", r"\{ is the brace"
            )
        open_groups[-1].options[-1] += ["{", *unclosed.options[0]]
    return open_groups[0].options[0]


def _chooses(group: _Group) -> bool:
    first = group.options[0]
    return len(group.options) > 1 or (bool(first) and isinstance(first[0], str) and bool(_SEVERAL.match(first[0])))


def _taken(option: "list[str | _Group | _Named]", pattern: "re.Pattern[str]") -> "re.Match[str] | None":
    """What stands in front of an option, cut off it."""
    if not option or not isinstance(option[0], str):
        return None
    found = pattern.match(option[0])
    if found is not None:
        option[0] = option[0][found.end() :]
    return found


def _only_name(option: "list[str | _Group | _Named]") -> str | None:
    """The file of an option that is nothing else, as in {2$$__animal__}."""
    left = [part for part in option if not isinstance(part, str) or part.strip()]
    return left[0].name if len(left) == 1 and isinstance(left[0], _Named) else None


@cache
def _lines(path: Path) -> Sequence[str]:
    TEXT_BYTES.require("--wildcards", path.stat().st_size, f"{path} of {path.stat().st_size:,} bytes")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as err:
        raise InvalidInput("--wildcards", str(path), "UTF-8 text", str(err)) from err
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
