"""ComfyUI's graph of nodes, as it writes it into pictures, as fields of a request.

Of a graph only what one sampler needs is read: from the node that saves pictures back to the nearest sampler, and from
there its model, prompts and latents. A node that is passed over on the way is listed, for what it changes is not done.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from undertow.diffusion.grids import GRIDS
from undertow.errors import InvalidInput
from undertow.infotext.reading import Collector, NamedFile, Reading
from undertow.sampling.names import read_names

SAMPLERS = ("KSampler", "KSamplerAdvanced")
ENDS = ("SaveImage", "PreviewImage", "SaveAnimatedWEBP")
EMPTY = "EmptyLatentImage"

VALUES = ("value", "seed", "noise_seed", "int", "float", "text", "string", "Text", "Number")
"""Inputs of nodes that only hold a value, in which others keep seeds and texts."""

PASSED = ("VAEDecode", "VAEDecodeTiled", "Reroute", "ConditioningZeroOut", "CLIPTextEncode", "CLIPTextEncodeSDXL")
"""Nodes on the way that change nothing, or whose change is read."""

MOST_HOPS = 1000
"""From one node to another; longer ways are circles, or made to take long."""

NOT_DONE = "what this node changes is not done here"


def read_comfy(prompt: str) -> Reading | None:
    """What ComfyUI's graph ("prompt", not "workflow") says of a picture; `None` for what is no graph."""
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
    return _Reader(nodes=nodes).read() if nodes else None


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node. kind: its class. inputs: values, and links as [node, output]."""

    name: str
    kind: str
    inputs: Mapping[str, Any]

    @property
    def title(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(kw_only=True)
class _Reader:
    nodes: Mapping[str, Node]
    found: Collector = field(default_factory=Collector)
    read_nodes: set[str] = field(default_factory=set[str])

    def read(self) -> Reading:
        sampler = self._sampler()
        if sampler is None:
            kinds = sorted({node.kind for node in self.nodes.values()})
            self.found.skip("nodes", ", ".join(kinds)[:200], "no KSampler is among them")
            return self.found.reading("ComfyUI")
        self.found.request |= {"dialect": "comfy", "timestep_map": "nearest", "noise_convention": "comfy"}
        self._settings(sampler)
        self._latents(sampler)
        for side, target in (("positive", "prompt"), ("negative", "negative_prompt")):
            self._text(sampler, side, target)
        self._model(sampler)
        return self.found.reading("ComfyUI")

    def _sampler(self) -> Node | None:
        """The sampler of the picture: the first of those that follow each other."""
        ends = [node for node in self.nodes.values() if node.kind in ENDS]
        starts = [self._linked(end, "images") for end in ends] or list(self.nodes.values())
        nearest = next((node for start in starts for node in self._upstream(start) if node.kind in SAMPLERS), None)
        if nearest is None:
            return None
        earlier = [node for node in self._upstream(self._linked(nearest, "latent_image")) if node.kind in SAMPLERS]
        for later in [nearest, *earlier[:-1]] if earlier else []:
            self.found.skip(
                later.title, f"{later.inputs.get('steps')} steps", "only the first of several passes is read"
            )
        return earlier[-1] if earlier else nearest

    def _settings(self, node: Node) -> None:
        request = self.found.request
        seed = "noise_seed" if node.kind == "KSamplerAdvanced" else "seed"
        for name, target in ((seed, "seed"), ("steps", "steps"), ("cfg", "guidance_scale")):
            value = self._value(node, name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                request[target] = value
            else:
                self.found.skip(f"{node.title}.{name}", node.inputs.get(name), "it is no number")
        self._sampling(str(self._value(node, "sampler_name")), str(self._value(node, "scheduler")))
        begin, end = node.inputs.get("start_at_step", 0), node.inputs.get("end_at_step", 10000)
        if begin != 0 or (isinstance(end, int) and end < request.get("steps", 0)):
            self.found.skip(f"{node.title}.start_at_step, end_at_step", f"{begin}, {end}", "all steps are taken")

    def _sampling(self, name: str, grid: str) -> None:
        try:
            sampler, schedule = read_names(name, grid, tool="ComfyUI")
        except InvalidInput as err:
            self.found.skip("sampler_name", name, err.expected)
            return
        self.found.request["sampler"] = sampler
        if schedule in GRIDS:
            self.found.request["schedule"] = schedule
        else:
            self.found.skip("scheduler", grid, "no schedule of this name is known")

    def _latents(self, node: Node) -> None:
        denoise = node.inputs.get("denoise", 1.0)
        for latent in self._upstream(self._linked(node, "latent_image")):
            if latent.kind.startswith("Empty") and "width" in latent.inputs:
                size = [self._value(latent, side) for side in ("height", "width")]
                if all(isinstance(side, int) for side in size):
                    self.found.request["size"] = size
                if latent.inputs.get("batch_size", 1) != 1:
                    self.found.skip(
                        "batch_size", latent.inputs["batch_size"], "the first picture of the batch is drawn"
                    )
                if denoise != 1:
                    self.found.skip("denoise", denoise, "without a picture to start from all noise levels are drawn")
                return
            if latent.kind.startswith("VAEEncode"):
                self.found.request |= {"strength": denoise, "strength_convention": "comfy"}
                named = next((str(one.inputs["image"]) for one in self._upstream(latent) if "image" in one.inputs), "")
                self.found.files.append(NamedFile(kind="picture", name=named, option="--image"))
            elif latent.kind not in PASSED:
                self.found.skip(latent.title, "", NOT_DONE)

    def _text(self, node: Node, side: str, target: str) -> None:
        for conditioning in self._upstream(self._linked(node, side), ("conditioning", "conditioning_1", side)):
            text = self._value(conditioning, "text")
            both = [self._value(conditioning, name) for name in ("text_g", "text_l")]
            text = both[0] if text is None and both[0] == both[1] else text
            if conditioning.kind == "ConditioningZeroOut":
                self.found.request[target] = ""
                return
            if isinstance(text, str):
                self.found.request[target] = text
                self._clip(conditioning)
                return
            self.found.skip(f"{side}: {conditioning.title}", "", NOT_DONE)

    def _clip(self, node: Node) -> None:
        for loader in self._upstream(self._linked(node, "clip"), ("clip",)):
            stop = loader.inputs.get("stop_at_clip_layer")
            if isinstance(stop, int) and stop < 0:
                self.found.request["clip_skip"] = -stop

    def _model(self, node: Node) -> None:
        for loader in self._upstream(self._linked(node, "model"), ("model",)):
            inputs = loader.inputs
            if isinstance(name := inputs.get("lora_name"), str):
                scale = inputs.get("strength_model", 1.0)
                scale = float(scale) if isinstance(scale, int | float) else None
                self.found.files.append(NamedFile(kind="LoRA", name=name, option="--lora", scale=scale))
                if inputs.get("strength_clip", scale) != scale:
                    self.found.skip(f"{loader.title}.strength_clip", inputs["strength_clip"], "one scale acts on both")
            elif isinstance(name := inputs.get("ckpt_name", inputs.get("unet_name")), str):
                self.found.files.append(NamedFile(kind="model", name=name, option="--model"))
            else:
                self.found.skip(loader.title, "", NOT_DONE)

    def _linked(self, node: Node, name: str) -> Node | None:
        """The node that an input comes from."""
        link = node.inputs.get(name)
        return self.nodes.get(str(link[0])) if isinstance(link, list) and link else None

    def _value(self, node: Node, name: str) -> Any:
        """An input's value; of a link to a node that only holds one, that."""
        for _ in range(MOST_HOPS):
            value = node.inputs.get(name)
            linked = self._linked(node, name)
            if linked is None:
                return None if isinstance(value, list) else value
            held = [one for one in VALUES if one in linked.inputs]
            if not held:
                return None
            node, name = linked, held[0]
        return None

    def _upstream(self, start: Node | None, names: tuple[str, ...] = ()) -> Iterator[Node]:
        """A node and those that it is made from, the nearest first. names: of the inputs to follow; all when empty."""
        waiting, seen = [start], set[str]()
        while waiting and len(seen) < MOST_HOPS:
            node = waiting.pop(0)
            if node is None or node.name in seen:
                continue
            seen.add(node.name)
            yield node
            followed = names or tuple(node.inputs)
            waiting += [self._linked(node, name) for name in followed]
