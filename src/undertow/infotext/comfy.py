"""ComfyUI's graph of nodes, as it writes it into pictures, as fields of a request.

A graph is read from the node that saves pictures back to the first sampler, and from there its model, prompts and
latents. Of a sampler behind it the second pass over a larger picture is read, or the refiner (`comfy_passes`). A node
that is passed over on the way is listed, for what it changes is not done.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from undertow.diffusion.grids import GRIDS
from undertow.errors import InvalidInput
from undertow.infotext.comfy_passes import read_later
from undertow.infotext.graph import Graph, Node
from undertow.infotext.reading import LORA, Collector, NamedFile, Reading
from undertow.sampling.names import read_names

SAMPLERS = ("KSampler", "KSamplerAdvanced")
ENDS = ("SaveImage", "PreviewImage", "SaveAnimatedWEBP")

PASSED = ("VAEDecode", "VAEDecodeTiled", "Reroute", "ConditioningZeroOut", "CLIPTextEncode", "CLIPTextEncodeSDXL")
"""Nodes on the way that change nothing, or whose change is read."""

NOT_DONE = "what this node changes is not done here"


def read_comfy(prompt: str) -> Reading | None:
    """What ComfyUI's graph ("prompt", not "workflow") says of a picture; `None` for what is no graph."""
    graph = Graph.parse(prompt)
    return None if graph is None else _Reader(graph=graph).read()


@dataclass(kw_only=True)
class _Reader:
    graph: Graph
    found: Collector = field(default_factory=Collector)
    later: Sequence[Node] = ()

    def read(self) -> Reading:
        sampler = self._sampler()
        if sampler is None:
            kinds = sorted({node.kind for node in self.graph.nodes.values()})
            self.found.skip("nodes", ", ".join(kinds)[:200], "no KSampler is among them")
            return self.found.reading("ComfyUI")
        self.found.request |= {"dialect": "comfy", "timestep_map": "nearest", "noise_convention": "comfy"}
        self._settings(sampler)
        self._latents(sampler)
        for side, target in (("positive", "prompt"), ("negative", "negative_prompt")):
            self._text(sampler, side, target)
        self._model(sampler)
        if not read_later(self.graph, sampler, self.later, self.found):
            self._require_all_steps(sampler)
        return self.found.reading("ComfyUI")

    def _sampler(self) -> Node | None:
        """The sampler of the picture: the first of those that follow each other."""
        ends = [node for node in self.graph.nodes.values() if node.kind in ENDS]
        starts = [self.graph.linked(end, "images") for end in ends] or list(self.graph.nodes.values())
        nearest = next((node for start in starts for node in self.graph.upstream(start) if node.kind in SAMPLERS), None)
        if nearest is None:
            return None
        earlier = [
            node for node in self.graph.upstream(self.graph.linked(nearest, "latent_image")) if node.kind in SAMPLERS
        ]
        first, *later = [*reversed(earlier), nearest]
        self.later = later
        return first

    def _settings(self, node: Node) -> None:
        request = self.found.request
        seed = "noise_seed" if node.kind == "KSamplerAdvanced" else "seed"
        for name, target in ((seed, "seed"), ("steps", "steps"), ("cfg", "guidance_scale")):
            value = self.graph.value(node, name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                request[target] = value
            else:
                self.found.skip(f"{node.title}.{name}", node.inputs.get(name), "it is no number")
        self._sampling(str(self.graph.value(node, "sampler_name")), str(self.graph.value(node, "scheduler")))

    def _require_all_steps(self, node: Node) -> None:
        begin, end = node.inputs.get("start_at_step", 0), node.inputs.get("end_at_step", 10000)
        if begin != 0 or (isinstance(end, int) and end < self.found.request.get("steps", 0)):
            self.found.skip(f"{node.title}.start_at_step, end_at_step", f"{begin}, {end}", "all steps are taken")

    def _sampling(self, name: str, grid: str) -> None:
        try:
            sampler, schedule = read_names(name, grid, tool="ComfyUI")
        except InvalidInput:
            self.found.skip("sampler_name", name, "no sampler of this name is known")
            return
        self.found.request["sampler"] = sampler
        if schedule in GRIDS:
            self.found.request["schedule"] = schedule
        else:
            self.found.skip("scheduler", grid, "no schedule of this name is known")

    def _latents(self, node: Node) -> None:
        denoise = node.inputs.get("denoise", 1.0)
        for latent in self.graph.upstream(self.graph.linked(node, "latent_image")):
            if latent.kind.startswith("Empty") and "width" in latent.inputs:
                size = [self.graph.value(latent, side) for side in ("height", "width")]
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
                named = next(
                    (str(one.inputs["image"]) for one in self.graph.upstream(latent) if "image" in one.inputs), ""
                )
                self.found.files.append(NamedFile(kind="picture", name=named, option="--image"))
            elif latent.kind not in PASSED:
                self.found.skip(latent.title, "", NOT_DONE)

    def _text(self, node: Node, side: str, target: str) -> None:
        for conditioning in self.graph.upstream(
            self.graph.linked(node, side), ("conditioning", "conditioning_1", side)
        ):
            text = self.graph.value(conditioning, "text")
            both = [self.graph.value(conditioning, name) for name in ("text_g", "text_l")]
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
        for loader in self.graph.upstream(self.graph.linked(node, "clip"), ("clip",)):
            stop = loader.inputs.get("stop_at_clip_layer")
            if isinstance(stop, int) and stop < 0:
                self.found.request["clip_skip"] = -stop

    def _model(self, node: Node) -> None:
        for loader in self.graph.upstream(self.graph.linked(node, "model"), ("model",)):
            inputs = loader.inputs
            if isinstance(name := inputs.get("lora_name"), str):
                scale = inputs.get("strength_model", 1.0)
                scale = float(scale) if isinstance(scale, int | float) else None
                self.found.files.append(NamedFile(kind=LORA, name=name, option="--lora", scale=scale))
                if inputs.get("strength_clip", scale) != scale:
                    self.found.skip(f"{loader.title}.strength_clip", inputs["strength_clip"], "one scale acts on both")
            elif isinstance(name := inputs.get("ckpt_name", inputs.get("unet_name")), str):
                self.found.files.append(NamedFile(kind="model", name=name, option="--model"))
            else:
                self.found.skip(loader.title, "", NOT_DONE)
