"""The text side of a Stable Diffusion model: its encoders together, from a prompt to conditioning."""

import copy
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from undertow.encoders.assemble import Assembler, Part, Rules
from undertow.encoders.cache import RecentlyUsed
from undertow.encoders.chunks import Division, Run, Token, tokenize
from undertow.encoders.clip import OutputSelection, TextEncoder
from undertow.encoders.clip_config import Kind
from undertow.encoders.emphasis import EMPHASIS
from undertow.encoders.encoding import TextEncoding, TextReport, WeightedEncoding
from undertow.encoders.inversion import Inversions
from undertow.encoders.prompts.catalogue import Dialect, find_dialect, parse_prompt
from undertow.encoders.prompts.resolve import composed, resolve, varies
from undertow.encoders.prompts.tree import (
    Blend,
    Embedding,
    Fragment,
    Joined,
    ParsedPrompt,
    Text,
    find_all,
    map_texts,
)
from undertow.encoders.reading import Reading
from undertow.errors import ConfigError, InvalidInput
from undertow.lookup import look_up
from undertow.nn.quantized import quantized_layers
from undertow.vocabulary import Vocabulary, spelling_note

LongPrompts = Literal["chunk", "truncate"]

# What each family's U-Net was trained to read (trap T5 of text: the tensors do not say): CompVis' FrozenCLIPEmbedder
# for SD1, Stability's FrozenOpenCLIPEmbedder with layer "penultimate" for SD2, generative-models' sd_xl_base.yaml and
# sd_xl_refiner.yaml for SDXL, whose hidden states are not normalized.
OUTPUT_SELECTIONS: dict[tuple[Kind, ...], tuple[OutputSelection, ...]] = {
    ("clip_l",): (OutputSelection(skip=1, final_norm=True),),
    ("openclip_h",): (OutputSelection(skip=2, final_norm=True),),
    ("clip_l", "openclip_g"): (
        OutputSelection(skip=2, final_norm=False),
        OutputSelection(skip=2, final_norm=False, pooled=True),
    ),
    ("openclip_g",): (OutputSelection(skip=2, final_norm=False, pooled=True),),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Adaptation:
    """Weights that encoders read with instead of their own. key: equal for equal weights. weights: of an encoder, by
    the names of its parameters; asked for only when a text is not in the cache."""

    key: Hashable
    weights: Callable[[TextEncoder], Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class _Options:
    """What an encoding depends on besides texts and weights of the networks."""

    emphasis: str | None
    clip_skip: int | None
    long: LongPrompts


class TextStack:
    """One encoder (SD1, SD2, refiner) or two (SDXL), whose widths are concatenated.

    selections: what is read of each encoder; None takes the family's. vocabulary: the only words that the model knows,
    if they are few; encodings note others. cache_size: encodings to remember. A merge into an encoder's weights is
    noticed; only what writes through `.data` must call `forget`.
    """

    def __init__(
        self,
        encoders: Sequence[TextEncoder],
        *,
        selections: Sequence[OutputSelection] | None = None,
        vocabulary: Vocabulary | None = None,
        cache_size: int = 64,
    ):
        kinds: tuple[Kind, ...] = tuple(encoder.kind for encoder in encoders)
        if selections is None:
            if kinds not in OUTPUT_SELECTIONS:
                known = "; ".join(" + ".join(family) for family in OUTPUT_SELECTIONS)
                raise ConfigError("encoders", " + ".join(kinds), f"must be one of: {known}; or pass selections")
            selections = OUTPUT_SELECTIONS[kinds]
        if len(selections) != len(encoders):
            raise ConfigError("selections", len(selections), f"must be one for each of {len(encoders)} encoders")
        self.encoders = tuple(encoders)
        self.selections = tuple(selections)
        self.vocabulary = vocabulary
        widths: dict[Kind, int] = {encoder.kind: encoder.config.width for encoder in encoders}
        self._inversions = Inversions(widths, min(encoder.config.positions for encoder in encoders) - 2)
        self._cache: RecentlyUsed[TextEncoding] = RecentlyUsed(cache_size)
        self._adaptation: Adaptation | None = None

    def adapted(self, adaptation: "Adaptation") -> "TextStack":
        """The same stack, its cache included, with other weights; it itself does not change."""
        other = copy.copy(self)
        other._adaptation = adaptation
        return other

    def afresh(self) -> "TextStack":
        """The same stack without what it has encoded: its networks run for every text, and what they give is kept for
        no other."""
        other = copy.copy(self)
        other._cache = RecentlyUsed(0)
        return other

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Of the encoders, in order."""
        return tuple(encoder.kind for encoder in self.encoders)

    @property
    def width(self) -> int:
        """Of a context token."""
        return sum(encoder.config.width for encoder in self.encoders)

    @property
    def pooled_width(self) -> int | None:
        """Of the pooled vector; None where none is read."""
        found = [
            e.config.projection for e, selection in zip(self.encoders, self.selections, strict=True) if selection.pooled
        ]
        return sum(found) if found else None

    @property
    def embeddings(self) -> tuple[str, ...]:
        """Names of the textual inversions that prompts may use."""
        return tuple(self._inversions)

    @property
    def inversions(self) -> Inversions:
        """The textual inversions themselves."""
        return self._inversions

    def knows_embedding(self, name: str) -> bool:
        """Whether there is a textual inversion of this name, in any case, with or without a file's ending."""
        return self._inversions.find(name) is not None

    def add_embedding(self, name: str, vectors: Tensor | Mapping[str, Tensor], *, file: Path | None = None) -> None:
        """Makes `name` in a prompt stand for `vectors`, [vectors, dim] or [dim]; for two encoders a mapping by kind.

        ComfyUI's dialect writes it `embedding:name`. file: that they were read from, whose hash is written into the
        pictures. Errors: `InvalidInput`.
        """
        self._inversions.add(name, vectors, file)

    def embeddings_in(self, texts: Iterable[str], dialect: str) -> tuple[str, ...]:
        """Names of the textual inversions that prompts use. Errors: `PromptError`."""
        if not self.embeddings:
            return ()
        trees = [parse_prompt(text, dialect, composition=False).tree for text in texts]
        named = [leaf for tree in trees for leaf in find_all(tree, Embedding)]
        if find_dialect(dialect).embeddings == "words":
            words = [leaf.text for tree in trees for leaf in find_all(tree, Text)]
            named += [part for text in words for part in self._inversions.split(text) if isinstance(part, Embedding)]
        return tuple(key for one in named if (key := self._inversions.find(one.name)) is not None)

    def embedding_files(self, texts: Iterable[str], dialect: str) -> dict[str, Path]:
        """The files of the textual inversions that prompts use, by name. Errors: `PromptError`."""
        used = self.embeddings_in(texts, dialect)
        return {key: file for key in used if (file := self._inversions.file(key)) is not None}

    def remove_embedding(self, name: str) -> None:
        """Forgets a textual inversion. Errors: `InvalidInput` when it is not known."""
        self._inversions.remove(name)

    def to(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "TextStack":
        """Moves the encoders; returns the stack itself."""
        for encoder in self.encoders:
            encoder.to(device=device, dtype=dtype)
        return self

    def forget(self) -> None:
        """Empties the cache of encodings."""
        self._cache.clear()

    def encode(
        self,
        prompt: str | ParsedPrompt,
        *,
        second: str | ParsedPrompt | None = None,
        dialect: str = "plain",
        emphasis: str | None = None,
        clip_skip: int | None = None,
        long: LongPrompts = "chunk",
    ) -> TextEncoding:
        """The conditioning of a prompt that is the same at every step.

        second: another prompt for the second encoder (diffusers' prompt_2). dialect: how text is read: plain, a1111,
        comfy, compel; what is parsed already keeps its own.
        emphasis: how weights act, a name of `EMPHASIS`, or "none" to read no syntax of weights; None takes the
        dialect's own. clip_skip: layer counted from the end, 1 is the last, where the family does not read an earlier
        one anyway. long: prompts of more than 75 tokens are encoded in chunks, or cut; the report says what was cut.
        Errors: `PromptError`, `InvalidInput`.
        """
        options = _options(emphasis, clip_skip, long)
        parsed = self._parsed(prompt, dialect, options)
        return self._encode(parsed, None if second is None else self._second(second, dialect, options), options)

    def encode_steps(
        self,
        prompt: str | ParsedPrompt,
        steps: int,
        *,
        second: str | ParsedPrompt | None = None,
        dialect: str = "plain",
        emphasis: str | None = None,
        clip_skip: int | None = None,
        long: LongPrompts = "chunk",
        composition: bool = True,
    ) -> tuple[tuple[WeightedEncoding, ...], ...]:
        """For each step the prompts that guide it: several where prompts are composed with AND, others after an edit.

        composition: whether AND and the weight behind a prompt are read, as of a prompt itself, or are text, as in a
        negative one. Equal steps share one encoding. Other arguments and errors as in `encode`.
        """
        if steps < 1:
            raise InvalidInput("steps", steps, "at least 1")
        options = _options(emphasis, clip_skip, long)
        first = self._parsed(prompt, dialect, options, composition=composition)
        other = None if second is None else self._second(second, dialect, options)
        done: dict[Hashable, TextEncoding] = {}

        def encoding(one: ParsedPrompt, beside: ParsedPrompt | None) -> TextEncoding:
            if (one, beside) not in done:
                done[one, beside] = self._encode(one, beside, options)
            return done[one, beside]

        def at(step: int) -> tuple[WeightedEncoding, ...]:
            beside = None if other is None else resolve(other, step, steps)[0][0]
            return tuple(
                WeightedEncoding(encoding=encoding(one, beside), weight=weight)
                for one, weight in resolve(first, step, steps)
            )

        if not varies(first) and (other is None or not varies(other)):
            return (at(0),) * steps
        return tuple(at(step) for step in range(steps))

    def read_steps(
        self, prompt: str, steps: int, *, dialect: str = "plain", clip_skip: int | None = None, composition: bool = True
    ) -> tuple[Reading, ...]:
        """What the tokens of each unlike context say that `encode_steps` would give; no network runs. Errors: as
        there."""
        options = _options(None, clip_skip, "chunk")
        parsed = self._parsed(prompt, dialect, options, composition=composition)
        unlike = dict.fromkeys(one for step in range(max(1, steps)) for one, _ in resolve(parsed, step, max(1, steps)))
        return tuple(_read(self._assemblers([self._spelled(one)] * len(self.encoders), options)) for one in unlike)

    def pieces(self, text: str) -> tuple[Token, ...]:
        """A plain text's tokens for the first encoder, as they stand in `TextEncoding.reading`."""
        runs, _ = tokenize([Fragment(Text(self.spelled(text)))], self.encoders[0], self._inversions)
        return tuple(token for run in runs if isinstance(run, Run) for token in run.tokens)

    def _parsed(
        self, prompt: str | ParsedPrompt, dialect: str, options: _Options, *, composition: bool = True
    ) -> ParsedPrompt:
        if isinstance(prompt, ParsedPrompt):
            return prompt
        return parse_prompt(prompt, dialect, emphasis=options.emphasis != "none", composition=composition)

    def _second(self, prompt: str | ParsedPrompt, dialect: str, options: _Options) -> ParsedPrompt:
        if len(self.encoders) < 2:
            raise InvalidInput("second", "given", "none, for a model with one text encoder")
        parsed = self._parsed(prompt, dialect, options, composition=False)
        if composed(parsed):
            raise InvalidInput("second", "composed with AND", "one prompt", "compose the first prompt")
        return parsed

    @torch.no_grad()
    def _encode(self, first: ParsedPrompt, second: ParsedPrompt | None, options: _Options) -> TextEncoding:
        for parsed in (first, second):
            if parsed is not None and (composed(parsed) or varies(parsed)):
                raise InvalidInput(
                    "prompt", "composed or different between steps", "one text", "use encode_steps, or resolve it first"
                )
        first, second = self._spelled(first), None if second is None else self._spelled(second)
        key = (first, second, options, self._state())
        cached = self._cache.find(key)
        if cached is not None:
            return replace(cached, report=replace(cached.report, cached=True))
        assemblers = self._assemblers([first, first if second is None else second], options)
        parts = _parts(assemblers)
        pools = [part.pooled for part in parts if part.pooled is not None]
        prompts = (first,) if second is None else (first, second)
        reports = tuple(report for part in parts for report in part.reports)
        notes = [note for prompt in prompts for note in prompt.notes] + [note for r in reports for note in r.notes]
        notes += [note for prompt in prompts if (note := self._unknown_words(prompt)) is not None]
        encoding = TextEncoding(
            context=torch.cat([part.context for part in parts], dim=-1),
            pooled=torch.cat(pools, dim=-1) if pools else None,
            report=TextReport(
                encoders=reports,
                notes=tuple(dict.fromkeys(notes)),
                tags=tuple(tag for prompt in prompts for tag in prompt.tags),
                placement=self._placement(first),
            ),
            reading=_read(assemblers),
        )
        self._cache.keep(key, encoding)
        return encoding

    def _assemblers(self, prompts: Sequence[ParsedPrompt], options: _Options) -> list[tuple[Assembler, ParsedPrompt]]:
        """One for each encoder, with the prompt that it reads."""
        return [
            (
                Assembler(
                    encoder if self._adaptation is None else encoder.with_weights(self._adaptation.weights(encoder)),
                    _skipped(selection, options),
                    self._inversions,
                    _rules(encoder, find_dialect(parsed.dialect), options),
                ),
                parsed,
            )
            for encoder, selection, parsed in zip(self.encoders, self.selections, prompts, strict=False)
        ]

    def spelled(self, text: str) -> str:
        """A plain text, such as a caption, as `encode` reads it: with names for emoji if the model has few words."""
        return text if self.vocabulary is None else self.vocabulary.spelled(text)[0]

    def notes_on(self, texts: Sequence[str]) -> tuple[str, ...]:
        """What to know about plain texts together: emoji that are read by their names, and words that the model never
        had. Nothing of a model that was trained on any words."""
        if self.vocabulary is None:
            return ()
        names: dict[str, str] = {}
        for text in texts:
            names |= self.vocabulary.spelled(text)[1]
        unknown = self.vocabulary.note(map(self.spelled, texts), known=self.embeddings)
        return (*((spelling_note(names, texts),) if names else ()), *(() if unknown is None else (unknown,)))

    def _spelled(self, prompt: ParsedPrompt) -> ParsedPrompt:
        """With names for emoji characters, of which a small model's tokenizer knows none."""
        if self.vocabulary is None:
            return prompt
        found: dict[str, str] = {}
        texts: list[str] = []

        def spelled(text: str) -> str:
            new, names = vocabulary.spelled(text)
            found.update(names)
            texts.append(text)
            return new

        vocabulary = self.vocabulary
        tree = map_texts(prompt.tree, spelled)
        return replace(prompt, tree=tree, notes=(*prompt.notes, spelling_note(found, texts))) if found else prompt

    def _placement(self, prompt: ParsedPrompt) -> str:
        if self.vocabulary is None:
            return ""
        parts = prompt.tree.parts if isinstance(prompt.tree, Blend | Joined) else (prompt.tree,)
        texts = [" ".join(leaf.text for leaf in find_all(part, Text)) for part in parts]
        return next((note for text in texts if (note := self.vocabulary.placement_note(text)) is not None), "")

    def _unknown_words(self, prompt: ParsedPrompt) -> str | None:
        if self.vocabulary is None:
            return None
        return self.vocabulary.note([leaf.text for leaf in find_all(prompt.tree, Text)], known=self.embeddings)

    def _state(self) -> int:
        """Changes when a weight, its place or an embedding changes."""
        # Of a tensor, torch counts the writes in place; data_ptr changes when it is replaced or moved.
        weights = (
            (w.data_ptr(), w.dtype, w._version)  # pyright: ignore[reportPrivateUsage]
            for encoder in self.encoders
            for w in encoder.parameters()
        )
        adaptation = None if self._adaptation is None else self._adaptation.key
        schemes = (tuple(quantized_layers(encoder).items()) for encoder in self.encoders)
        return hash((adaptation, self._inversions.revision, *weights, *schemes))


def _parts(assemblers: Sequence[tuple[Assembler, ParsedPrompt]]) -> list[Part]:
    """Each encoder's share, of equal length."""
    made = [(assembler, assembler.encode(parsed.tree)) for assembler, parsed in assemblers]
    longest = max(part.context.shape[1] for _, part in made)
    return [assembler.padded(part, longest) for assembler, part in made]


def _read(assemblers: Sequence[tuple[Assembler, ParsedPrompt]]) -> Reading:
    """What the first encoder's tokens say, in a context as long as the longest."""
    readings = [assembler.read(parsed.tree) for assembler, parsed in assemblers]
    return assemblers[0][0].read_to(readings[0], max(len(one.kinds) for one in readings))


def _options(emphasis: str | None, clip_skip: int | None, long: LongPrompts) -> _Options:
    if emphasis is not None and emphasis != "none":
        look_up(EMPHASIS, emphasis, "emphasis")
    if clip_skip is not None and clip_skip < 1:
        raise InvalidInput("clip_skip", clip_skip, "1 (the last layer) or more")
    if long not in get_args(LongPrompts):
        raise InvalidInput("long", repr(long), f"one of {', '.join(get_args(LongPrompts))}")
    return _Options(emphasis=emphasis, clip_skip=clip_skip, long=long)


def _skipped(selection: OutputSelection, options: _Options) -> OutputSelection:
    if options.clip_skip is None:
        return selection
    # SD2 and SDXL never read their last layer, so what is 1 for them in the web UI is their own default.
    return replace(selection, skip=max(options.clip_skip, selection.skip))


def _rules(encoder: TextEncoder, dialect: Dialect, options: _Options) -> Rules:
    comma = encoder.tokenizer.encode(",")
    division = Division(
        truncate=options.long == "truncate",
        comma_backtrack=dialect.comma_backtrack,
        keep_together=dialect.keep_together,
        divide_embeddings=dialect.embeddings == "syntax",
        comma=comma[-1] if comma else None,
    )
    match options.emphasis:
        case None:
            emphasis = dialect.emphasis
        case "none":
            emphasis = "ignore"
        case name:
            emphasis = name
    return Rules(
        emphasis=EMPHASIS[emphasis], division=division, merge=dialect.merge, names=dialect.embeddings == "words"
    )
