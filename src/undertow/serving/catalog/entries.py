"""What the catalog knows of a model, an adapter or an embedding."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from undertow.adapters.files.bundled import ADAPTERS
from undertow.checkpoints.files.hashes import content_hash, model_sha256
from undertow.checkpoints.files.hub import files_to_fetch
from undertow.checkpoints.keymap.prefixes import TextKind
from undertow.known_names import BackendName, PrecisionName
from undertow.memory.work import Subject
from undertow.quantization import Quantized
from undertow.schedulers.levels import CarriedLevels, Levels
from undertow.schedulers.model_sampler import ModelSampler
from undertow.serving.jobs import JobSpec
from undertow.vocabulary import Vocabulary

EMBEDDING = "textual inversion"
"""The kind of an embedding; every other kind is an adapter's."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelEntry:
    """A model that clients may name. source: what is loaded: a path, an embedded model's name or a Hub id. path: where
    it lies on this machine. subject: its networks, as forecasts take them. dtype, vae_dtype: of U-Net and autoencoder
    when a worker loads it, on the device that the catalog was made for. family: "sd1", "sdxl" and so on. precision:
    what to load it in, where that is another type than unasked. backend: what computes it, where not PyTorch eagerly.
    quantize: how, where not as its files were written. suggested: fields of a request that it is best drawn with, where
    the defaults are not right. vocabulary: of a small model. sampler, levels, text_layers: as in `NamedModel`."""

    name: str
    source: str
    path: Path
    subject: Subject
    dtype: str
    vae_dtype: str
    family: str
    precision: PrecisionName | None = None
    backend: BackendName | None = None
    quantize: Quantized | None = None
    suggested: dict[str, float] = field(default_factory=dict[str, float])
    vocabulary: Vocabulary | None = None
    sampler: ModelSampler | str | None = None
    levels: Levels | CarriedLevels | None = None
    text_layers: Mapping[TextKind, int] = field(default_factory=dict[TextKind, int])

    @cached_property
    def hash(self) -> str:
        """SHA-256 of all its files: another one is another model. Errors: `OSError`."""
        return content_hash(self.files)

    @cached_property
    def a1111_hash(self) -> str:
        """SHA-256 by whose first digits pictures and A1111's clients know it. Errors: `OSError`."""
        found = model_sha256(self.path)
        return self.hash if found is None else found

    @property
    def files(self) -> list[Path]:
        """What is read when it is loaded; adapters that came with it have hashes of their own."""
        if self.path.is_file():
            return [self.path]
        inside = [file.relative_to(self.path) for file in self.path.rglob("*") if file.is_file()]
        own = [file.as_posix() for file in inside if file.parts[0] != ADAPTERS]
        return [self.path / name for name in files_to_fetch(own, None)]

    @property
    def is_quick(self) -> bool:
        """Whether it is drawn in few steps."""
        return "steps" in self.suggested

    @property
    def copies(self) -> bool:
        """Whether what computes it has weights of its own beside the model's."""
        return self.backend == "openvino" or (self.backend == "packed" and self.dtype != "float16")

    def computed(self, spec: JobSpec) -> JobSpec:
        """A job that says how this model computes. In the mode "reproducible" the background's graphs are not used
        (`BatchLimits.padded_to`), and it is the job that it were without them."""
        backend = None if self.backend == "background" and spec.rows is not None else self.backend
        return replace(spec, precision=self.precision, backend=backend, quantize=self.quantize)

    def draws_like(self, other: "ModelEntry") -> bool:
        """Whether it may take the place of another: it is of the same family, and knows every word that the other
        does."""
        if self.family != other.family or other.vocabulary is None or self.vocabulary is None:
            return self.family == other.family and self.vocabulary is other.vocabulary
        return set(self.vocabulary.words) >= set(other.vocabulary.words)

    @property
    def trained_size(self) -> int:
        """Side in pixels of the pictures that it was trained on."""
        assert self.subject.unet is not None
        return self.subject.unet.sample_size * self.subject.factor


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterEntry:
    """An adapter, or an embedding, that clients may name. kind: LoRA, ControlNet, Control-LoRA, T2I-Adapter,
    IP-Adapter or textual inversion. title: what its file calls it. model: the only model that has it, because it came
    with it. text_width: of the tokens of the models that it was made for, where its tensors tell. words: of an
    embedding, what prompts call it. layers: of a LoRA, what its file calls the layers that it changes. rank: of a LoRA,
    the largest of a layer; `None` where one is no plain low-rank change. numbers, stored_bytes: of all its tensors."""

    name: str
    path: Path
    kind: str
    title: str
    files: tuple[Path, ...]
    model: str | None = None
    text_width: int | None = None
    words: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    rank: int | None = None
    numbers: int = 0
    stored_bytes: int = 0

    @cached_property
    def hash(self) -> str:
        """SHA-256 of its files. Errors: `OSError`."""
        return content_hash(self.files)

    @property
    def reads_pictures(self) -> bool:
        return self.kind not in ("LoRA", EMBEDDING)


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """Something that is there and cannot be offered, and why, in a sentence. name: never where it lies."""

    name: str
    reason: str
