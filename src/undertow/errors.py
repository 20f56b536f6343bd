"""The exceptions that a caller may want to catch.

    UndertowError
    ├─ ConfigError          an impossible or contradictory configuration (field, value, rule)
    ├─ InvalidInput         an argument that cannot be used (argument, value, expected, remedy)
    │  └─ PromptError         a prompt that cannot be read (position)
    ├─ DataError            an unreadable or empty data set (path)
    ├─ CheckpointError      a file of weights or training state that cannot be used (path)
    │  ├─ UnknownCheckpoint   nothing we know how to read
    │  │  └─ UnsupportedModel   recognized, and not something that undertow runs (model)
    │  ├─ UnsafeFile          a file that could execute code, refused unread
    │  ├─ KeyMismatch         parameters missing, unexpected or of another shape
    │  ├─ AdapterMismatch     an adapter that does not fit the model (made_for, unmatched, reshaped)
    │  ├─ CorruptFile         truncated or damaged
    │  ├─ DamagedWeights      whole, with values that are not numbers (tensors)
    │  └─ MissingComponent    the part that is needed is not in the checkpoint (component)
    ├─ NonFiniteError       NaN or Inf appeared inside a network (layer)
    ├─ EngineClosed         an engine that takes no more requests
    ├─ RequestFailed        a request failed alone: out of memory, a kernel, an observer's hook (origin)
    ├─ OutOfMemory          memory ran out, or would (work, needed_bytes, free_bytes)
    └─ MissingDependency    an optional package is not installed (package, extra)

A message says the value, what was expected and the remedy, in one sentence or two.
"""

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from undertow.shortage import address_words, asked_memory, is_out_of_memory, size_in_words

PLAIN = (
    (re.compile(r".*set_int_max_str_digits.*"), "a number of thousands of digits"),
    (re.compile(r"could not convert string to float: (.*)"), r"\1 is no number"),
    (re.compile(r"invalid literal for int\(\) with base \d+: (.*)"), r"\1 is no whole number"),
    (re.compile(r".*(MAX_TEXT_CHUNK|MAX_TEXT_MEMORY).*"), "a text or a color profile in it is larger than it may be"),
)
"""What Python and its libraries say in terms of their own functions, and what a user can understand."""


def in_plain_words(error: BaseException) -> str:
    """What was wrong with a file, for the end of a sentence, without words of Python's own."""
    match error:
        case RecursionError():
            return "brackets inside one another, too deep"
        case KeyError():
            return f"{error} is missing"
        case AttributeError() | TypeError():
            return "a value is of another kind than was expected"
    said = " ".join(str(error).split())
    found = ((pattern.fullmatch(said), words) for pattern, words in PLAIN)
    return next((match.expand(words) for match, words in found if match is not None), said) or type(error).__name__


class UndertowError(Exception):
    """Base of every error that undertow raises on purpose."""


class ConfigError(UndertowError, ValueError):
    """A configuration that no network can be built from. Names the field, its value and the broken rule, and the file
    that it stands in, if it is from one."""

    def __init__(self, field: str, value: object, rule: str, *, file: str | Path | None = None):
        where = "" if file is None else f"{file}: "
        super().__init__(f"{where}{field} = {value!r}: {rule}")
        self.field = field
        self.value = value
        self.rule = rule
        self.file = None if file is None else Path(file)


@contextmanager
def naming_file(file: str | Path) -> Generator[None]:
    """Stands around what makes a configuration from a file's content: a `ConfigError` names the file."""
    try:
        yield
    except ConfigError as err:
        if err.file is not None:
            raise
        raise ConfigError(err.field, err.value, err.rule, file=file) from err


class InvalidInput(UndertowError, ValueError):
    """An argument refused before any work. Names the argument, its value, the expectation and the remedy."""

    def __init__(self, argument: str, value: object, expected: str, remedy: str = ""):
        super().__init__(f"{argument} is {value}, expected {expected}" + (f"; {remedy}" if remedy else ""))
        self.argument = argument
        self.value = value
        self.expected = expected
        self.remedy = remedy


class PromptError(InvalidInput):
    """A prompt that its dialect cannot read. Names the place, counted in characters from 0."""

    def __init__(self, position: int, value: object, expected: str, remedy: str = ""):
        super().__init__(f"the prompt at character {position}", value, expected, remedy)
        self.position = position


class DataError(UndertowError):
    """A data set that is missing, empty or unreadable."""

    def __init__(self, path: str | Path, problem: str, remedy: str = ""):
        super().__init__(f"{path}: {problem}" + (f"; {remedy}" if remedy else ""))
        self.path = Path(path)
        self.problem = problem
        self.remedy = remedy


class CheckpointError(UndertowError):
    """A checkpoint that cannot be used."""

    def __init__(self, path: str | Path, problem: str, remedy: str = ""):
        super().__init__(f"{path}: {problem}" + (f"; {remedy}" if remedy else ""))
        self.path = Path(path)
        self.problem = problem
        self.remedy = remedy


class UnknownCheckpoint(CheckpointError):
    """Nothing at this place that undertow knows how to read."""


class UnsupportedModel(UnknownCheckpoint):
    """A checkpoint that was recognized and that undertow does not run. Names the model."""

    def __init__(self, path: str | Path, model: str, remedy: str = ""):
        super().__init__(path, f"this is {model}, which undertow does not run", remedy)
        self.model = model


class UnsafeFile(CheckpointError):
    """A file whose reading could execute code (a pickle); nothing of it was read."""


class CorruptFile(CheckpointError):
    """A file that is truncated or damaged."""


class DamagedWeights(CheckpointError):
    """A whole file with NaN or infinity in tensors that would be used. Names the tensors."""

    def __init__(self, path: str | Path, tensors: Sequence[str], details: str, remedy: str = ""):
        super().__init__(path, details, remedy)
        self.tensors = tuple(tensors)


class MissingComponent(CheckpointError):
    """The part of a pipeline that is needed now is not in the checkpoint. Names the component."""

    def __init__(self, path: str | Path, component: str, remedy: str = ""):
        super().__init__(path, f"it holds no {component}", remedy)
        self.component = component


class KeyMismatch(CheckpointError):
    """The file's tensors are not those of the network."""

    def __init__(
        self,
        path: str | Path,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        reshaped: Sequence[str] = (),
    ):
        parts = [
            f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
            if names
        ]
        super().__init__(
            path, "tensors do not fit the network: " + "; ".join(parts), "check that config and weights belong together"
        )
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)
        self.reshaped = tuple(reshaped)


class AdapterMismatch(CheckpointError):
    """An adapter that does not fit the model. Names the model it was made for, if that is the reason, and the file's
    layers that the model does not have or has in another shape."""

    def __init__(
        self,
        path: str | Path,
        problem: str,
        remedy: str = "",
        *,
        made_for: str | None = None,
        unmatched: Sequence[str] = (),
        reshaped: Sequence[str] = (),
    ):
        super().__init__(path, problem, remedy)
        self.made_for = made_for
        self.unmatched = tuple(unmatched)
        self.reshaped = tuple(reshaped)


class NonFiniteError(UndertowError, ArithmeticError):
    """NaN or Inf came out of a layer whose input was finite. Names the layer and the type it computed in. fault: what
    the engine found, an `engine.fault.Fault`, with step, row and cause; `None` where it did not look."""

    def __init__(self, layer: str, dtype: object, problem: str, remedy: str = "", fault: object = None):
        super().__init__(f"{layer} in {dtype}: {problem}" + (f"; {remedy}" if remedy else ""))
        self.layer = layer
        self.dtype = dtype
        self.problem = problem
        self.remedy = remedy
        self.fault = fault


class EngineClosed(UndertowError, RuntimeError):
    """A request came to an engine that was closed."""

    def __init__(self) -> None:
        super().__init__("this engine was closed and takes no more requests; load the model again")


class RequestFailed(UndertowError, RuntimeError):
    """A request failed while others go on: a row of a forward, alone as well as beside others, or its encoding or
    decoding. Names where, and what was tried to need less memory; what was raised is its `__cause__`."""

    def __init__(self, origin: object, cause: BaseException, tried: str = "", least_bytes: int | None = None):
        said = f": {cause}" if str(cause) else ""
        if is_out_of_memory(cause):
            said += f", also with less ({tried})" if tried else ""
            least = "" if least_bytes is None else f"the least that it needs is {size_in_words(least_bytes)}"
            said += "".join(f"; {words}" for words in (least, address_words()) if words)
            said += "; draw a smaller picture, or fewer at once"
        super().__init__(f"{origin}: {type(cause).__name__}{said}")
        self.origin = origin


LESS_MEMORY = "free some, or ask for less: a smaller picture, fewer at once, or a type of half the size (float16)"


class OutOfMemory(UndertowError, MemoryError):
    """Memory ran out, or would: then nothing was begun. Names the work, what it needs and what is free, where that is
    known; what was raised, if anything was, is its `__cause__`."""

    def __init__(
        self,
        work: str,
        *,
        needed_bytes: int | None = None,
        free_bytes: int | None = None,
        remedy: str = LESS_MEMORY,
        cause: BaseException | None = None,
    ):
        needed = asked_memory(cause) if needed_bytes is None else f"at least {size_in_words(needed_bytes)}"
        said = f"{work} needs more memory than there is"
        if needed:
            free = "" if free_bytes is None else f", of which {size_in_words(free_bytes)} are free"
            said = f"{work} needs {needed} of memory{free}"
        limit = "" if cause is None else address_words()
        super().__init__(f"{said}; {limit}; {remedy}" if limit else f"{said}; {remedy}")
        self.work = work
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        self.remedy = remedy
        self.__cause__ = cause


class MissingDependency(UndertowError, ImportError):
    """An optional package is needed and not installed. extra: what it comes with; `None` for one by itself. problem:
    why one that is installed cannot be imported."""

    def __init__(self, package: str, extra: str | None = None, *, problem: str = ""):
        wanted = package if extra is None else f"'undertow[{extra}]'"
        if problem:
            said = f"the package {package!r} is installed and cannot be imported ({problem})"
            super().__init__(f"{said}: pip install -U {package}")
        else:
            super().__init__(f"this needs the package {package!r}: pip install {wanted}")
        self.package = package
        self.extra = extra
