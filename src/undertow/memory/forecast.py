"""How much memory work takes, stage by stage, before it is begun: from architectures and numbers, without torch.

    forecast(family("sd15"), Work(size=(768, 768), dtype="float16")).peak_bytes

Activations are those of a walk through the networks on stand-ins (`ledger.py`), weights are counted, and the process's
memory is both plus what the interpreter and the libraries take.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from undertow.memory import stage_walks, training_walk, vae_walk, weights
from undertow.memory.calibration import Calibration
from undertow.memory.ledger import Ledger, Peak, Signature
from undertow.memory.machine import Machine, this_machine
from undertow.memory.work import ITEM_BYTES, Subject, Work
from undertow.unet.config import UNetConfig

PROCESS_BYTES = 500 * 2**20
"""What a process takes beside tensors: the interpreter, PyTorch's libraries, and what its kernels and allocator keep;
never below in the cases of `python -m benchmarks.memory --process`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hotspot:
    """Where a stage takes most: the module, and the operation in it."""

    module: str
    operation: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StageForecast:
    """What one stage takes at its peak.

    weight_bytes: of everything that is in memory then. activation_bytes: of tensors and of `workspace_bytes`, which
    kernels take for themselves. by_component, by_level, by_module: what the activations are at the peak, the level 0
    being the highest resolution, and the modules those that made them. operations: how often one forward calls each
    kernel, by its signature (`operations.py`); calls: forwards of the stage. seconds: of all of them; `None` where
    nothing was measured.
    """

    name: str
    weight_bytes: int
    activation_bytes: int
    workspace_bytes: int
    by_component: dict[str, int]
    by_level: dict[int, int]
    hotspot: Hotspot
    by_module: dict[str, int] = field(default_factory=dict)
    operations: dict[Signature, int] = field(default_factory=dict)
    calls: int = 1
    seconds: float | None = None

    @property
    def peak_bytes(self) -> int:
        return self.weight_bytes + self.activation_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What work takes. process_bytes: of the whole process at its peak, as the kernel counts it."""

    stages: tuple[StageForecast, ...]
    process_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Of weights and activations, in the stage that takes most."""
        return max(stage.peak_bytes for stage in self.stages)

    def stage(self, name: str) -> StageForecast:
        return next(stage for stage in self.stages if stage.name == name)


def forecast(subject: Subject, work: Work, machine: Machine | None = None) -> Forecast:
    """What `work` takes with these networks. machine: `None` for the one that this runs on. Errors: `ConfigError` for a
    size that is no multiple of the factor."""
    return _forecast(subject, work, this_machine() if machine is None else machine)


@lru_cache(maxsize=256)
def _forecast(subject: Subject, work: Work, machine: Machine) -> Forecast:
    held = component_bytes(subject, work)
    denoising = None if subject.unet is None else _walk("denoise", subject, _of_unet(work), machine)
    if denoising is not None:
        held["unet"] += ITEM_BYTES[work.dtype] * (work.lora_slots + 1) * work.lora_rank * denoising.slot_numbers
        if machine.device == "cpu":  # else they are in the host's memory
            held["unet"] += _copied_bytes(subject, work)
    stages = []
    if subject.text_encoders:
        whole = _stage("text", held, work, _walk("text", subject, _of_text(work), machine))
        changed = work.loras and work.changes_text
        copy = component_bytes(replace(subject, quantized=()), work)["text"] if changed else 0  # a changed one is plain
        stages.append(replace(whole, weight_bytes=whole.weight_bytes + copy))
    if work.image_tokens:
        stages.append(_stage("image", held, work, _walk("image", subject, _of_image(work), machine)))
    if subject.controlnet is not None and subject.unet is not None and work.controlnets:
        walk = _walk("controlnet", subject, _of_unet(work), machine)
        whole = _stage("controlnet", held, work, walk, calls=work.steps)
        stages.append(_offloaded(whole, subject.unet, held["unet"], work, machine, working=False))
    if subject.unet is not None and denoising is not None:
        batches = -(-work.pictures * work.branches // work.batch)
        calls = work.steps * batches
        whole = _stage("denoise", held, work, denoising, calls=calls)
        stages.append(_offloaded(whole, subject.unet, held["unet"], work, machine))
    if subject.vae is not None:
        for name in ("decode", "encode"):
            walk = _walk(name, subject, _of_vae(work), machine)
            whole = _stage(name, held, work, walk, calls=work.pictures)
            stages.append(_tiled(whole, subject, work))
    if subject.unet is not None and work.training is not None:
        stages.append(_trained(training_walk.train(subject.unet, subject, work, work.training, machine), work))
    if machine.calibration is not None:
        stages = [_reserved(stage, machine.calibration) for stage in stages]
    peak = max(stage.peak_bytes for stage in stages)
    return Forecast(stages=tuple(stages), process_bytes=peak + PROCESS_BYTES)


def _reserved(stage: StageForecast, calibration: Calibration) -> StageForecast:
    """What the device's allocator gives out for it, workspaces and fragments included."""
    reserved = calibration.reserved(stage.name, stage.activation_bytes)
    workspace = stage.workspace_bytes + reserved - stage.activation_bytes
    by_component = stage.by_component | {"workspace": workspace}
    return replace(stage, activation_bytes=reserved, workspace_bytes=workspace, by_component=by_component)


@lru_cache(maxsize=64)
def _walk(stage: str, subject: Subject, work: Work, machine: Machine) -> Ledger:
    """work: what the stage reads of it, so that plans whose measures do not concern it walk once."""
    return WALKS[stage](subject, work, machine)


WALKS: Mapping[str, Callable[[Subject, Work, Machine], Ledger]] = {
    "text": stage_walks.text,
    "image": stage_walks.image,
    "controlnet": stage_walks.controlnet,
    "denoise": stage_walks.denoise,
    "decode": stage_walks.decode,
    "encode": stage_walks.encode,
}


def _of_unet(work: Work) -> Work:
    return replace(work, keep=(), offloaded_layers=False, decode_bytes=None, steps=1, training=None)


def _of_text(work: Work) -> Work:
    return Work(tokens=work.tokens, dtype=work.dtype, text_dtype=work.text_dtype)


def _of_image(work: Work) -> Work:
    return Work(references=work.references, image_encoder=work.image_encoder, image_dtype=work.image_dtype)


def _of_vae(work: Work) -> Work:
    return Work(size=work.size, dtype=work.dtype, vae_dtype=work.vae_dtype)


LAYER_GROUPS = 16
"""Parts in which the layers of a network come into memory one after the other (`layers.GROUPS`)."""

_TOGETHER = frozenset({"controlnet", "unet"})
STAGE_COMPONENTS: Mapping[str, frozenset[str]] = {
    "text": frozenset({"text"}),
    "image": frozenset({"image"}),
    "controlnet": _TOGETHER,
    "denoise": _TOGETHER,
    "decode": frozenset({"vae"}),
    "encode": frozenset({"vae"}),
}
"""The components whose weights each stage needs. Networks of one forward stay together: they would come and go at every
step."""


STAYING = ("adapters", "copies")
"""In memory during every stage."""


def component_bytes(subject: Subject, work: Work) -> dict[str, int]:
    """Bytes of each component's weights: text, image, controlnet, unet (without slots for LoRA) and vae, and of what
    stays: files of adapters, and copies by what computes the networks."""
    item, text_item = ITEM_BYTES[work.dtype], ITEM_BYTES[work.text_dtype or work.dtype]
    found = {"text": text_item * sum(weights.text_weights(network) for network in subject.text_encoders)}
    if work.image_tokens:
        found["image"] = ITEM_BYTES[work.image_dtype or "float32"] * weights.vision_weights(work.image_encoder)
        found["image"] += work.image_prompt_bytes
    if work.adapter_bytes:
        found["adapters"] = work.adapter_bytes
    if subject.controlnet is not None and work.controlnets:
        found["controlnet"] = item * work.controlnets * weights.controlnet_weights(subject.controlnet)
    if subject.unet is not None:
        found["unet"] = item * weights.unet_weights(subject.unet)
    if subject.vae is not None:
        found["vae"] = ITEM_BYTES[work.vae_dtype or work.dtype] * weights.vae_weights(subject.vae)
    plain = dict(found)
    items = {"unet": item, "text": text_item, "vae": ITEM_BYTES[work.vae_dtype or work.dtype]}
    for one in subject.quantized:
        found[one.component] -= one.saved_bytes(items[one.component])
    if work.copied:
        quantized = sum(one.numbers for one in subject.quantized if one.component == "unet")  # which nothing copies
        copied = sum(plain.get(name, 0) for name in ("unet", "controlnet")) - item * quantized
        found["copies"] = max(0, copied)
    return found


def _stage(
    name: str,
    held: dict[str, int],
    work: Work,
    ledger: Ledger,
    *,
    calls: int = 1,
) -> StageForecast:
    kept = {component for component in held if component in (*work.keep, *STAYING)} | STAGE_COMPONENTS[name]
    peak: Peak = ledger.peak
    return StageForecast(
        name=name,
        weight_bytes=sum(held.get(component, 0) for component in kept),
        activation_bytes=peak.size,
        workspace_bytes=peak.workspace,
        by_component=peak.components | ({"workspace": peak.workspace} if peak.workspace else {}),
        by_level=peak.levels,
        by_module=peak.modules,
        hotspot=Hotspot(module=peak.module, operation=peak.operation),
        operations=dict(ledger.operations),
        calls=calls,
    )


def _trained(step: training_walk.TrainingStep, work: Work) -> StageForecast:
    peak = step.ledger.peak
    return StageForecast(
        name="train",
        weight_bytes=step.held,
        activation_bytes=peak.size + step.gradients,
        workspace_bytes=peak.workspace,
        by_component=peak.components | {"workspace": peak.workspace, "gradients": step.gradients},
        by_level=peak.levels,
        by_module=peak.modules,
        hotspot=Hotspot(module=peak.module, operation=peak.operation),
        operations=dict(step.ledger.operations),
        calls=work.steps,
    )


def _copied_bytes(subject: Subject, work: Work) -> int:
    """At most, of the copies that are kept of weights into which LoRA are merged."""
    if subject.unet is None or not (work.merged and work.loras):
        return 0
    count = weights.unet_weights if work.changes_all else weights.transformer_weights
    return ITEM_BYTES[work.dtype] * count(subject.unet)


def _offloaded(
    whole: StageForecast, config: UNetConfig, own: int, work: Work, machine: Machine, *, working: bool = True
) -> StageForecast:
    """The U-Net's layers may come in in groups: a group is a sixteenth of its bytes, or the largest layer, which is a
    convolution of the lowest level and a skip connection. A device that copies beside computing holds two of them.
    working: whether the U-Net computes in this stage."""
    if not work.offloaded_layers:
        return whole
    largest = ITEM_BYTES[work.dtype] * weights.largest_convolution(config)
    there = working * min(own, (2 if machine.device == "cuda" else 1) * max(-(-own // LAYER_GROUPS), largest))
    return replace(whole, weight_bytes=whole.weight_bytes - own + there)


def _tiled(whole: StageForecast, subject: Subject, work: Work) -> StageForecast:
    """Exact tiles take what they may, or the least that there is."""
    assert subject.vae is not None
    budget = work.decode_bytes
    if budget is None or whole.activation_bytes <= budget:
        return whole
    item = ITEM_BYTES[work.vae_dtype or work.dtype]
    least = vae_walk.smallest_bytes(subject.vae, work.cells(subject), whole.activation_bytes, item)
    taken = max(budget, least)
    return replace(
        whole,
        activation_bytes=taken,
        workspace_bytes=0,
        by_component={"tiles": taken},
        by_level={0: taken},
        by_module={whole.hotspot.module: taken},
    )
