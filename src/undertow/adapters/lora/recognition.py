"""Which algorithm the tensors of one layer are of, by their leaves (`leaves.py`), and whether they are all there. No
torch: a file is judged by its header."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from undertow.adapters.lora.leaves import LoraNames
from undertow.errors import CorruptFile

REMEDY = "download it again, or train it anew"

Name = Literal["lora", "loha", "lokr", "glora", "ia3", "oft", "norm", "full"]
Choice = frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """title: for messages. needs: leaves that must be present; each entry can be satisfied by any one of several sets
    of leaves. may: leaves that are allowed besides."""

    title: str
    needs: tuple[tuple[Choice, ...], ...]
    may: frozenset[str] = frozenset()

    @property
    def own(self) -> frozenset[str]:
        """Every leaf that identifies this algorithm."""
        return frozenset().union(*(choice for need in self.needs for choice in need))

    def missing(self, leaves: frozenset[str]) -> frozenset[str]:
        """Required leaves that are not there; where one of several sets suffices, those of the most complete set."""
        wanting: set[str] = set()
        for need in self.needs:
            nearest = min(need, key=lambda choice: (len(choice - leaves), -len(choice & leaves)))
            wanting |= nearest - leaves
        return frozenset(wanting)


def _all(*leaves: str) -> tuple[tuple[Choice, ...], ...]:
    return tuple((frozenset({leaf}),) for leaf in leaves)


_DECOMPOSED = {"alpha", "dora_scale", "magnitude", "diff_b"}

ALGORITHMS: Mapping[Name, Algorithm] = {
    "lora": Algorithm(title="LoRA", needs=_all("down", "up"), may=frozenset({"mid", "up_bias"} | _DECOMPOSED)),
    "loha": Algorithm(
        title="LoHa",
        needs=_all("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
        may=frozenset({"hada_t1", "hada_t2"} | _DECOMPOSED),
    ),
    "lokr": Algorithm(
        title="LoKr",
        needs=tuple((frozenset({f"lokr_{w}"}), frozenset({f"lokr_{w}_a", f"lokr_{w}_b"})) for w in ("w1", "w2")),
        may=frozenset({"lokr_t2"} | _DECOMPOSED),
    ),
    "glora": Algorithm(title="GLoRA", needs=_all("a1", "a2", "b1", "b2"), may=frozenset({"bm", "alpha", "diff_b"})),
    "ia3": Algorithm(title="IA3", needs=_all("weight", "on_input")),
    "oft": Algorithm(title="OFT", needs=_all("oft_blocks"), may=frozenset({"rescale", "alpha", "diff_b"})),
    "norm": Algorithm(
        title="a norm's difference",
        needs=((frozenset({"w_norm"}), frozenset({"b_norm"})),),
        may=frozenset({"w_norm", "b_norm", "alpha"}),
    ),
    "full": Algorithm(
        title="a whole difference",
        needs=((frozenset({"diff"}), frozenset({"diff_b"})),),
        may=frozenset({"diff", "diff_b", "alpha"}),
    ),
}
"""`diff_b` alone is a difference, and beside another algorithm it belongs to that."""


class UnreadableLayer(Exception):
    """The tensors of one layer do not make an update. The message completes "the layer NAME ..."."""


def recognize(leaves: frozenset[str]) -> Name:
    """The name of the algorithm in `ALGORITHMS`. Errors: `UnreadableLayer` for an incomplete one, and for several."""
    shown: list[Name] = [
        name
        for name, algorithm in ALGORITHMS.items()
        if algorithm.own & leaves and not (name == "full" and "diff" not in leaves)
    ]
    if not shown and "diff_b" in leaves:
        return "full"
    if len(shown) != 1:
        if not shown:
            raise UnreadableLayer(f"has {_listed(leaves)} and nothing to go with it")
        raise UnreadableLayer(f"mixes {' and '.join(ALGORITHMS[name].title for name in shown)}")
    algorithm = ALGORITHMS[shown[0]]
    missing = algorithm.missing(leaves)
    if missing:
        raise UnreadableLayer(f"has {_listed(leaves & algorithm.own)} without {_listed(missing)} ({algorithm.title})")
    foreign = leaves - algorithm.own - algorithm.may
    if foreign:
        raise UnreadableLayer(f"has {_listed(foreign)}, which {algorithm.title} has not")
    if len(leaves & {"hada_t1", "hada_t2"}) == 1:
        raise UnreadableLayer("has one of hada_t1 and hada_t2 without the other")
    return shown[0]


def require_whole(path: Path, names: LoraNames, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Checks by a file's header that each of its layers can be an update: all tensors are there, and the two factors of
    a LoRA have one rank. shapes: by the file's names. Errors: `CorruptFile`."""
    for stem, layer in names.layers.items():
        try:
            if recognize(frozenset(layer.leaves)) == "lora":
                _require_rank(shapes[layer.leaves["down"]], shapes[layer.leaves["up"]])
        except UnreadableLayer as err:
            raise CorruptFile(path, f"the layer {stem} {err}", REMEDY) from err


def _require_rank(down: tuple[int, ...], up: tuple[int, ...]) -> None:
    """Errors: `UnreadableLayer`."""
    if len(down) < 2 or len(up) < 2 or down[0] != up[1]:
        shown = " and ".join("x".join(map(str, shape)) or "a number" for shape in (down, up))
        raise UnreadableLayer(f"has factors of shapes {shown}, which have no rank in common")


def _listed(leaves: frozenset[str]) -> str:
    return ", ".join(sorted(leaves))
