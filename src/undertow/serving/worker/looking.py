"""A job that is looked into while it is drawn, and what comes of that as files.

Everything looks at the rows of the job alone, and changes none of them: its pictures and those of its neighbors are the
same to the byte. A forward that is looked into takes longer, for all that share it.
"""

import json
import math
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

from PIL import Image

from undertow.engine.debug import Debug
from undertow.engine.engine import Engine
from undertow.engine.events import StepEvent
from undertow.engine.options import RunOptions
from undertow.engine.request import GenerationRequest
from undertow.engine.result import GenerationResult
from undertow.inspection.activation_pictures import ActivationHistory, ActivationWatch
from undertow.inspection.attention_choice import AttentionChoice
from undertow.inspection.marks import marked, next_mark
from undertow.inspection.profile import Profiler
from undertow.inspection.recorder import Recorder
from undertow.inspection.records import LayerStatistics
from undertow.inspection.visualize_attention import AttentionWatch
from undertow.inspection.word_maps import AttentionHeatmaps, WordOptions
from undertow.serving.inspection import InspectionKind, InspectOptions, MapOptions

JSON, NPZ, PNG = "application/json", "application/x-npz", "image/png"
DIGITS = 5
"""After the point, of shares of attention in JSON; the arrays have all."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A file of what was seen. picture: which it belongs to; `None` for all of the job."""

    kind: InspectionKind
    name: str
    media_type: str
    content: bytes
    picture: int | None = None


class Looking:
    """Looks into the forwards of one job, from `begin` to `end`. Errors: `InvalidInput` for words, layers, heads and
    cells that there are none of; `MissingComponent` for maps of a model without text."""

    def __init__(self, engine: Engine, request: GenerationRequest, wanted: InspectOptions):
        self._engine, self._mark = engine, next_mark()
        self._debug, self._debugs = Debug.parse(wanted.debug), bool(wanted.debug)
        maps = wanted.maps
        self._attention = None if maps is None else _attention(engine, request, maps, self._mark)
        self._activations = ActivationWatch(engine, request, mark=self._mark) if wanted.activations else None
        self._layers = Recorder(rows=marked(self._mark), records=deque(maxlen=0)) if self._debug.layers else None
        self._profiler = Profiler(engine, rows=marked(self._mark)) if wanted.profile else None
        self._until = ExitStack()

    def options(self, options: RunOptions) -> RunOptions:
        """Those of the job, by which its rows are known."""
        return replace(options, debug=self._debug, mark=self._mark)

    def begin(self) -> None:
        """Looks into forwards from now on."""
        watches = [one for one in (self._attention, self._activations) if one is not None]
        probes = [probe for watch in watches for probe in watch.probes]
        for probe in probes if self._layers is None else [*probes, self._layers]:
            self._engine.probes.append(probe)
            self._until.callback(self._engine.probes.remove, probe)
        if self._profiler is not None:
            self._until.enter_context(self._profiler)

    def end(self) -> None:
        """Looks no more."""
        self._until.close()

    def observe(self, event: StepEvent) -> None:
        """The job enters a step."""
        if self._activations is not None:
            self._activations.observe(event)

    def seen(self, result: GenerationResult, number: int) -> list[Seen]:
        """What was seen, as files. number: of the request in its engine, which does nothing else meanwhile. Errors:
        `InvalidInput` for maps of steps and branches that the request lacked."""
        self.end()
        found: list[Seen] = []
        if self._attention is not None:
            found += _maps(self._attention.heatmaps(result, number))
        if self._activations is not None:
            found += _history(self._activations.history(result))
        if self._debugs:
            statistics = () if self._layers is None else self._layers.statistics.values()
            told = {"lines": list(result.report.debug), "layers": [_statistics(one) for one in statistics]}
            found.append(_json("debug", "debug", told))
        if self._profiler is not None:
            found.append(_json("profile", "profile", self._profiler.profile(result.report).to_json()))
        return found


def _attention(engine: Engine, request: GenerationRequest, maps: MapOptions, mark: int) -> AttentionWatch:
    choice = AttentionChoice.of(layers=maps.layers, cells=maps.cells, heads=maps.heads, steps=maps.at_steps)
    options = WordOptions(words=maps.words, pooling=maps.pooling, among=maps.among, marks=maps.marks)
    return AttentionWatch(
        engine, request, choice, options, side=maps.side, self_attention=maps.self_attention, mark=mark
    )


def _maps(found: AttentionHeatmaps) -> Iterator[Seen]:
    """As the library saves them, and with the heat of each word in JSON, for pages that draw it."""
    for index, one in enumerate(found.pictures):
        name, described, arrays = f"attention-{index + 1}", found.described(index), BytesIO()
        for word, heat in one.maps.items():
            described["words"][word]["heat"] = heat.astype(float).round(DIGITS).tolist()
        one.save_arrays(arrays)
        yield _json("attention_maps", name, described, index)
        yield _picture("attention_maps", name, one.overlay(), index)
        yield Seen(kind="attention_maps", name=f"{name}.npz", media_type=NPZ, content=arrays.getvalue(), picture=index)


def _history(found: ActivationHistory) -> Iterator[Seen]:
    """As the library saves it."""
    yield _json("activations", "activations", found.to_json())
    yield _picture("activations", "activations", found.strips())
    if found.frames:
        yield _picture("activations", "activations-film", found.film())


def _statistics(one: LayerStatistics) -> dict[str, Any]:
    named = ("module", "kind", "side", "dtype", "records", "nan", "inf", "largest_at", "seconds")
    numbers = {"low": one.low, "high": one.high, "mean": one.mean, "std": one.std}
    finite = {name: value if value is not None and math.isfinite(value) else None for name, value in numbers.items()}
    return {**{name: getattr(one, name) for name in named}, "shape": list(one.shape), **finite}


def _json(kind: InspectionKind, name: str, value: Any, picture: int | None = None) -> Seen:
    content = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    return Seen(kind=kind, name=f"{name}.json", media_type=JSON, content=content, picture=picture)


def _picture(kind: InspectionKind, name: str, image: Image.Image, picture: int | None = None) -> Seen:
    content = BytesIO()
    image.save(content, format="PNG")
    return Seen(kind=kind, name=f"{name}.png", media_type=PNG, content=content.getvalue(), picture=picture)
