"""What a client asks to see inside, and what it gets: the words of the API and of the worker. No torch."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, MaxLen, MinLen
from pydantic import AfterValidator

from undertow.engine.debug import Debug
from undertow.errors import InvalidInput
from undertow.records import Record

InspectionKind = Literal["attention_maps", "activations", "debug", "profile"]

MOST_WORDS = 64

Patterns = Annotated[tuple[str, ...], MinLen(1), MaxLen(MOST_WORDS)]
Numbers = Annotated[tuple[Annotated[int, Ge(0)], ...], MinLen(1)]


def _known(debug: str | bool) -> str | bool:
    """Errors: `InvalidInput` for a word that means nothing."""
    Debug.parse(debug)
    return debug


@dataclass(frozen=True, kw_only=True)
class MapOptions(Record):
    """Which attention is averaged to a map of each word, as in the library's `visualize_attention`. `null` is all."""

    called = "attention_maps"

    words: Patterns | None = None
    """Words of the prompt, or phrases of it."""
    layers: Patterns | None = None
    """Patterns of names of attention layers, such as "up_blocks.*"."""
    cells: Numbers | None = None
    """Shorter sides of the layers' maps."""
    heads: Numbers | None = None
    at_steps: Numbers | None = None
    side: Literal["conditional", "unconditional"] = "conditional"
    """unconditional: the words of the negative prompt."""
    pooling: Literal["mean", "sum", "max"] = "mean"
    """What the maps of a word's pieces become."""
    among: Literal["context", "words"] = "context"
    """What shares are shares of: all tokens, or those of the text alone."""
    marks: bool = False
    """Also maps of the start mark, the end marks and the padding."""
    self_attention: bool = False
    """Also entropies of self-attention, and what each cell receives."""


@dataclass(frozen=True, kw_only=True)
class InspectOptions(Record):
    """What is looked at while a job is drawn. Its pictures stay the same to the byte, and take longer."""

    called = "inspect"

    attention_maps: MapOptions | bool = False
    """Where the words are attended to."""
    activations: bool = False
    """Statistics of every layer over the steps, and a film."""
    debug: Annotated[str | bool, AfterValidator(_known)] = False
    """A comma list of timing, nan, shapes, vae, sampler and layers; "all" and true are all of them."""
    profile: bool = False
    """Time and memory by layer. The job shares no forward with others, and nothing else is looked at."""

    def __post_init__(self) -> None:
        if self.profile and (self.attention_maps or self.activations or self.debug):
            raise InvalidInput("inspect.profile", "beside others", "alone", "to look at more would count as time")

    @property
    def asks(self) -> bool:
        """Whether anything is looked at."""
        return bool(self.attention_maps or self.activations or self.debug or self.profile)

    @property
    def longer(self) -> float:
        """How many times as long a step of the job's own rows takes, as measured of the embedded model on a CPU; the
        key is charged so, and the clock counts it."""
        layers = Debug.parse(self.debug).layers
        return 1 + 0.06 * bool(self.attention_maps) + 0.13 * self.activations + 1.5 * layers + 0.5 * self.profile

    @property
    def after_s(self) -> float:
        """Seconds in which what was seen becomes files, measured there too."""
        return 1.0 if self.profile else 0.25

    @property
    def maps(self) -> MapOptions | None:
        """Which maps; `None` for none."""
        given = self.attention_maps
        return given if isinstance(given, MapOptions) else MapOptions() if given else None


@dataclass(frozen=True, kw_only=True)
class ChangeView(Record):
    """A value that cures something. where: a field of the request, or of how the model is loaded, which is the
    operator's."""

    where: Literal["request", "load"]
    name: str
    value: Any


@dataclass(frozen=True, kw_only=True)
class FindingView(Record):
    """What one of the doctor's rules found."""

    rule: str
    family: str
    severity: Literal["serious", "warning", "note"]
    symptom: str
    evidence: str
    """What was measured."""
    cause: str
    fix: str
    prevention: str
    module: str = ""
    """The part that it concerns, where it is one."""
    changes: tuple[ChangeView, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DiagnosisView(Record):
    """What is wrong with a request, its model and the machine of the worker, the most serious first."""

    model: str
    serious: bool
    findings: tuple[FindingView, ...]
    rules: tuple[str, ...]
    """All that were asked."""
    skipped: dict[str, str]
    """Rules that could not be asked, with the reasons."""
    job: str | None = None
    """The job that this is the answer to."""
    subject: str | None = None
    """The job whose request was diagnosed, if it was one."""
