"""What follows the first sampler in ComfyUI's graph: a second pass over a larger picture, or a refiner's steps.

KSampler -> LatentUpscale -> KSampler                    latents are enlarged
KSampler -> VAEDecode -> ImageScale -> VAEEncode -> KSampler    pixels are
KSamplerAdvanced until step n -> KSamplerAdvanced from step n   another model draws the last steps (SDXL's refiner)
"""

from collections.abc import Sequence
from typing import Any

from undertow.infotext.graph import Graph, Node
from undertow.infotext.reading import Collector, NamedFile

BY, TO = ("LatentUpscaleBy", "ImageScaleBy"), ("LatentUpscale", "ImageScale")
"""Nodes that enlarge by a factor, and to a size."""

METHODS = {"latent": "bilinear", "pixels": "lanczos"}
"""How they are resized here."""

PASSED = ("VAEDecode", "VAEDecodeTiled", "VAEEncode", "VAEEncodeTiled", "Reroute")

SHARED = ("seed", "noise_seed", "cfg", "sampler_name", "scheduler", "positive", "negative", "model")
"""Inputs of a sampler that both passes have in common here."""


def read_later(graph: Graph, first: Node, later: Sequence[Node], found: Collector) -> bool:
    """Reads one sampler behind the first, and lists what has no part in the request. Whether it draws the steps that
    the first one leaves."""
    if len(later) == 1:
        if first.kind == later[0].kind == "KSamplerAdvanced" and _refined(graph, first, later[0], found):
            return True
        if later[0].kind == "KSampler" and _enlarged(graph, first, later[0], found):
            return False
    for node in later:
        found.skip(node.title, f"{node.inputs.get('steps')} steps", "this pass is not read")
    return False


def _enlarged(graph: Graph, first: Node, second: Node, found: Collector) -> bool:
    """A second pass over a larger picture. Whether it is one."""
    between = _between(graph, first, second)
    enlarging = [node for node in between if node.kind in (*BY, *TO)]
    if len(enlarging) != 1 or any(node.kind not in (*BY, *TO, *PASSED) for node in between):
        return False
    scale = _scale(graph, enlarging[0], found.request.get("size"))
    strength, steps = graph.value(second, "denoise"), graph.value(second, "steps")
    if scale is None or not isinstance(strength, int | float) or not isinstance(steps, int):
        return False
    upscale = "latent" if enlarging[0].kind.startswith("Latent") else "pixels"
    how = {"scale": scale, "strength": strength, "steps": steps, "upscale": upscale}
    found.request |= {"high_resolution": how, "strength_convention": "comfy"}
    method = enlarging[0].inputs.get("upscale_method")
    if method != METHODS[upscale]:
        found.skip(f"{enlarging[0].title}.upscale_method", method, f"they are resized by {METHODS[upscale]}")
    _list_differences(graph, first, second, SHARED, found)
    return True


def _refined(graph: Graph, first: Node, second: Node, found: Collector) -> bool:
    """The last steps by another model. Whether that is what the second sampler does."""
    steps, end = graph.value(first, "steps"), graph.value(first, "end_at_step")
    models = [_checkpoint(graph, node) for node in (first, second)]
    goes_on = end == graph.value(second, "start_at_step") and steps == graph.value(second, "steps")
    if _between(graph, first, second) or not goes_on or models[1] is None or models[0] == models[1]:
        return False
    if not isinstance(steps, int) or not isinstance(end, int) or not 0 < end < steps:
        return False
    found.request["refiner_switch"] = end / steps
    found.files.append(NamedFile(kind="refiner", name=models[1], option="--refiner"))
    _list_differences(graph, first, second, ("cfg", "sampler_name", "scheduler"), found)
    return True


def _between(graph: Graph, first: Node, second: Node) -> list[Node]:
    """The nodes from one sampler's latents to the other's."""
    way: list[Node] = []
    for node in graph.upstream(graph.linked(second, "latent_image"), ("samples", "pixels", "image", "latent_image")):
        if node.name == first.name:
            break
        way.append(node)
    return way


def _scale(graph: Graph, node: Node, size: Any) -> float | None:
    """How many times larger the sides become; `None` where they become unlike, or nothing tells."""
    if node.kind in BY:
        factor = graph.value(node, "scale_by")
        return float(factor) if isinstance(factor, int | float) and factor > 1 else None
    height, width = graph.value(node, "height"), graph.value(node, "width")
    if not isinstance(size, list) or not all(isinstance(side, int) and side > 0 for side in (height, width, *size)):
        return None
    factors = height / size[0], width / size[1]
    return factors[0] if factors[0] == factors[1] > 1 else None


def _list_differences(graph: Graph, first: Node, second: Node, names: Sequence[str], found: Collector) -> None:
    for name in names:
        if name not in second.inputs:
            continue
        theirs = [
            graph.value(node, name) if graph.linked(node, name) is None else node.inputs[name]
            for node in (first, second)
        ]
        if theirs[0] != theirs[1]:
            shown = "another" if graph.linked(second, name) is not None else theirs[1]
            found.skip(f"{second.title}.{name}", shown, "both passes have the first one's")


def _checkpoint(graph: Graph, sampler: Node) -> str | None:
    loaders = graph.upstream(graph.linked(sampler, "model"), ("model",))
    names = (node.inputs.get("ckpt_name", node.inputs.get("unet_name")) for node in loaders)
    return next((name for name in names if isinstance(name, str)), None)
