"""Adapters that a user names beside a stored request.

The rule: `--lora` names all the LoRAs there are to be, `--adapter` changes one or adds one, and what is not typed of an
adapter stays as it is stored. An adapter is found again by the name of its file.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from undertow.adapters.adapter import Adapter
from undertow.engine.named_files import file_name, listed, named_files, request_adapters, without_files

ENDING = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class NamedAdapter:
    """An adapter as it was typed. typed: the fields that were. is_lora: whether it was named as a LoRA."""

    adapter: Adapter
    typed: Collection[str] = ()
    is_lora: bool = False

    @property
    def key(self) -> str:
        return _key(self.adapter.source)

    def over(self, stored: Mapping[str, Any]) -> Adapter | dict[str, Any]:
        """The stored adapter, with what was typed; as JSON, which is refused, where that only names a picture."""
        source = self.adapter.source
        kept = {name: value for name, value in stored.items() if name not in self.typed and name != "encoder"}
        kept["source"] = str(source)  # beside which an image encoder is found
        if named_files({"adapters": [kept]}, [str(source)]):
            return kept
        return replace(
            Adapter.from_json(kept), source=source, **{name: getattr(self.adapter, name) for name in self.typed}
        )


@dataclass(frozen=True, kw_only=True)
class MergedAdapters:
    """value: of the field `adapters`, in which the stored ones are still JSON. dropped: names of the stored ones that
    are not in it."""

    value: Any
    dropped: Sequence[str]


def with_named(request: Mapping[str, Any], given: Sequence[NamedAdapter], bundled: Collection[str]) -> MergedAdapters:
    """A stored request's adapters, with those that the user named. bundled: names of adapters that came with the model;
    of the others those that read a picture also give way to an `--adapter` of a new name, as they are not here."""
    stored = list(request_adapters(without_files(request)))
    known = {_key(one.get("source")) for one in stored}
    left = list(given)
    lists_loras = any(one.is_lora for one in given)
    adds_another = any(not one.is_lora and one.key not in known for one in given)
    found: list[Adapter | dict[str, Any]] = []
    dropped: list[str] = []
    for one in stored:
        named = next((other for other in left if other.key == _key(one.get("source"))), None)
        if named is not None:
            left.remove(named)
            found.append(named.over(one))
        elif lists_loras if _is_lora(one) else adds_another and str(one.get("source")) not in bundled:
            dropped.append(file_name(str(one.get("source"))))
        else:
            found.append(one)
    found += [one.adapter for one in left]
    return MergedAdapters(value=_in_its_stack(request.get("adapters"), found), dropped=dropped)


def _key(source: object) -> str:
    return file_name(str(source)).removesuffix(ENDING)


def _is_lora(stored: Mapping[str, Any]) -> bool:
    """Everything else reads a picture."""
    return not stored.get("image") and stored.get("encoder") is None


def _in_its_stack(stored: Any, found: Sequence[Adapter | dict[str, Any]]) -> Any:
    """The adapters under the rule that they were stored with for layers that several change."""
    if not isinstance(stored, Mapping):
        return tuple(found)
    titles = set(_titles(found))
    rule = {**stored, "adapters": tuple(found), "off": [name for name in listed(stored.get("off")) if name in titles]}
    if isinstance(weights := stored.get("weights"), Mapping):
        rule["weights"] = {name: weight for name, weight in weights.items() if name in titles}
    return rule


def _titles(adapters: Sequence[Adapter | Mapping[str, Any]]) -> Iterator[str]:
    for one in adapters:
        if isinstance(one, Adapter):
            yield one.title
        else:
            yield str(one.get("name") or Adapter(str(one.get("source"))).title)
