"""ComfyUI's graph of nodes, and the ways through it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

VALUES = ("value", "seed", "noise_seed", "int", "float", "text", "string", "Text", "Number")
"""Inputs of nodes that only hold a value, in which others keep seeds and texts."""

MOST_HOPS = 1000
"""From one node to another; longer ways are circles, or made to take long."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node. kind: its class. inputs: values, and links as [node, output]."""

    name: str
    kind: str
    inputs: Mapping[str, Any]

    @property
    def title(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, kw_only=True)
class Graph:
    """nodes: by name."""

    nodes: Mapping[str, Node]

    @classmethod
    def parse(cls, prompt: str) -> "Graph | None":
        """The graph in ComfyUI's "prompt"; `None` for what is none."""
        try:
            graph = json.loads(prompt)
        except (ValueError, RecursionError):
            return None
        if not isinstance(graph, dict):
            return None
        nodes = {
            name: Node(name=name, kind=str(node["class_type"]), inputs=node["inputs"])
            for name, node in graph.items()
            if isinstance(node, dict) and isinstance(node.get("inputs"), dict) and "class_type" in node
        }
        return cls(nodes=nodes) if nodes else None

    def linked(self, node: Node, name: str) -> Node | None:
        """The node that an input comes from."""
        link = node.inputs.get(name)
        return self.nodes.get(str(link[0])) if isinstance(link, list) and link else None

    def value(self, node: Node, name: str) -> Any:
        """An input's value; of a link to a node that only holds one, that."""
        for _ in range(MOST_HOPS):
            value = node.inputs.get(name)
            linked = self.linked(node, name)
            if linked is None:
                return None if isinstance(value, list) else value
            held = [one for one in VALUES if one in linked.inputs]
            if not held:
                return None
            node, name = linked, held[0]
        return None

    def upstream(self, start: Node | None, names: tuple[str, ...] = ()) -> Iterator[Node]:
        """A node and those that it is made from, the nearest first. names: of the inputs to follow; all when empty."""
        waiting, seen = [start], set[str]()
        while waiting and len(seen) < MOST_HOPS:
            node = waiting.pop(0)
            if node is None or node.name in seen:
                continue
            seen.add(node.name)
            yield node
            followed = names or tuple(node.inputs)
            waiting += [self.linked(node, name) for name in followed]
