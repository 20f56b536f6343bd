"""The walk of each stage of some work, from its inputs to its result."""

from itertools import pairwise

from undertow.adapters.control.config import ControlNetConfig
from undertow.memory import image_walk, text_walk, unet_layers, unet_walk, vae_walk
from undertow.memory.ledger import Array, Ledger
from undertow.memory.machine import Machine
from undertow.memory.operations import LoraRows, Operations
from undertow.memory.work import ITEM_BYTES, Subject, VAENetwork, Work
from undertow.quantization import Scheme
from undertow.unet.config import TextTime, UNetConfig

SMALL_NUMBERS = 256
"""Allowed for what every row has one or a few of: timesteps, labels, gains, the slots of adapters."""


def operations(machine: Machine, dtype: str, kernel: str, schemes: tuple[Scheme, ...] = ()) -> Operations:
    return Operations(ledger=Ledger(ITEM_BYTES[dtype]), dtype=dtype, kernel=kernel, machine=machine, schemes=schemes)


def of_unet(
    work: Work, machine: Machine, *, loras: LoraRows | None = None, schemes: tuple[Scheme, ...] = ()
) -> Operations:
    """Of the U-Net and of ControlNets."""
    return Operations(
        ledger=Ledger(ITEM_BYTES[work.dtype]),
        dtype=work.dtype,
        kernel=work.kernel,
        kernels=work.kernels,
        in_parts=work.attention_in_parts,
        machine=machine,
        loras=loras,
        schemes=schemes,
    )


def text(subject: Subject, work: Work, machine: Machine) -> Ledger:
    ops = operations(machine, work.text_dtype or work.dtype, "sdpa", subject.schemes("text"))
    for network in subject.text_encoders:
        text_walk.encode_text(ops, network, -(-work.tokens // network.positions))
    return ops.ledger


def image(subject: Subject, work: Work, machine: Machine) -> Ledger:  # noqa: ARG001  as every stage
    ops = operations(machine, work.image_dtype or "float32", "sdpa")
    image_walk.see_pictures(ops, work.image_encoder, work.references)
    return ops.ledger


def controlnet(subject: Subject, work: Work, machine: Machine) -> Ledger:
    assert subject.controlnet is not None
    ops, config = of_unet(work, machine), subject.controlnet.unet
    walk = with_conditioning(config, work, ops, work.cells(subject))
    latents = inputs(config, subject, work, ops)
    embedded = _embedded_hint(subject.controlnet, subject, work, ops)
    with ops.ledger.at("inputs", "inputs"):
        hint = ops.ledger.new((work.batch, config.levels[0].channels, *work.cells(subject)), "cat")
    unet_walk.residuals(walk, latents)
    del hint, embedded
    return ops.ledger


def _embedded_hint(config: ControlNetConfig, subject: Subject, work: Work, ops: Operations) -> tuple[Array, Array]:
    """`HintEmbedding.forward`, of one picture before the first step; the picture is kept."""
    height, width = work.cells(subject)
    factor = 2 ** (len(config.hint_channels) - 1)
    with ops.ledger.at("controlnet_cond_embedding", "hint"):
        hint = ops.ledger.new((1, config.hint_in, factor * height, factor * width), "pixels")
        hidden = ops.elementwise("silu", ops.plain_conv(hint, config.hint_channels[0]))
        for narrow, wide in pairwise(config.hint_channels):
            hidden = ops.elementwise("silu", ops.plain_conv(hidden, narrow))
            hidden = ops.elementwise("silu", ops.plain_conv(hidden, wide, stride=2))
        return hint, ops.plain_conv(hidden, config.unet.levels[0].channels)


def denoise(subject: Subject, work: Work, machine: Machine) -> Ledger:
    assert subject.unet is not None
    slots = None if work.merged or not work.loras else LoraRows(per_row=work.loras, rank=work.lora_rank)
    ops = of_unet(work, machine, loras=slots, schemes=subject.schemes("unet"))
    walk = with_conditioning(subject.unet, work, ops, work.cells(subject))
    latents = inputs(subject.unet, subject, work, ops)
    held = _residuals(subject, work, ops), _image_tokens(subject.unet, work, ops), _kept_text(subject.unet, work, ops)
    unet_walk.predict(walk, latents, controlled=work.controlnets > 0, running=work.t2i_adapters > 0)
    del held
    return ops.ledger


def with_conditioning(config: UNetConfig, work: Work, ops: Operations, cells: tuple[int, int]) -> unet_layers.Stages:
    new, rows = ops.ledger.new, work.batch
    with ops.ledger.at("inputs", "inputs"):
        context = None if config.context_dim is None else new((rows, work.tokens, config.context_dim), "cat")
        regions = new((rows, work.tokens, *cells), "regions", item=1) if work.regions else None
        numbers = [new((SMALL_NUMBERS + rows,), "cat", item=8)]
        if isinstance(config.added, TextTime):
            numbers.append(new((rows, config.added.pooled_dim), "cat"))
            numbers.append(new((rows, config.added.ids), "cat", item=4))
    return unet_layers.Stages(
        config=config,
        ops=ops,
        context=context,
        embedding=unet_layers.time_embedding(ops, config, work.batch),
        others=tuple(numbers),
        image_tokens=work.image_tokens,
        chunks=work.feed_forward_chunks,
        regions=regions,
    )


def inputs(config: UNetConfig, subject: Subject, work: Work, ops: Operations) -> Array:
    with ops.ledger.at("inputs", "inputs"):
        return ops.ledger.new((work.batch, config.in_channels, *work.cells(subject)), "cat")


def _residuals(subject: Subject, work: Work, ops: Operations) -> list[Array]:
    """What ControlNets and T2I-Adapters made for the batch, which lives as long as the U-Net runs, and of the latter
    the features of each picture."""
    if subject.unet is None:
        return []
    shapes = subject.unet.skip_shapes(*work.cells(subject))
    made = [(work.batch, *shape) for shape in (*shapes, shapes[-1])] if work.controlnets else []
    for place in unet_walk.running_places(subject.unet) if work.t2i_adapters else ():
        made += [(work.batch, *shapes[place]), (work.t2i_adapters, *shapes[place])]
    with ops.ledger.at("inputs", "residuals"):
        return [ops.ledger.new(shape, "residual") for shape in made]


def _image_tokens(config: UNetConfig, work: Work, ops: Operations) -> list[Array]:
    """Keys and values of reference pictures at every cross-attention."""
    if not work.image_tokens:
        return []
    with ops.ledger.at("inputs", "image_tokens"):
        shapes = [(2 * work.batch, work.image_tokens, width) for width in config.cross_attentions().values()]
        return [ops.ledger.new(shape, "cat") for shape in shapes]


def _kept_text(config: UNetConfig, work: Work, ops: Operations) -> list[Array]:
    """Keys and values of the text at every cross-attention, where the engine keeps them: not beside LoRA in slots,
    which may change them, nor when it computes in parts to need less."""
    in_parts = work.attention_in_parts or work.feed_forward_chunks > 1
    if not work.kept_text or in_parts or ops.loras is not None:
        return []
    with ops.ledger.at("inputs", "inputs"):
        shapes = [(2 * work.batch, work.tokens, width) for width in config.cross_attentions().values()]
        return [ops.ledger.new(shape, "text") for shape in shapes]


def decode(subject: Subject, work: Work, machine: Machine) -> Ledger:
    assert subject.vae is not None
    steps = _vae(subject, subject.vae, work, machine)
    height, width = work.cells(subject)
    latents = steps.ops.ledger.new((1, subject.vae.latent_channels, height, width), "from_model")
    vae_walk.decode(steps, latents)
    return steps.ops.ledger


def encode(subject: Subject, work: Work, machine: Machine) -> Ledger:
    assert subject.vae is not None
    steps = _vae(subject, subject.vae, work, machine)
    pixels = steps.ops.ledger.new((1, subject.vae.in_channels, *work.size), "pixels")
    vae_walk.encode(steps, pixels)
    return steps.ops.ledger


def _vae(subject: Subject, network: VAENetwork, work: Work, machine: Machine) -> vae_walk.VAESteps:
    """Computed in the type of its weights, unless the processor only imitates that."""
    stored = work.vae_dtype or work.dtype
    imitated = stored == "bfloat16" and machine.device == "cpu" and not machine.bfloat16
    ops = operations(machine, "float32" if imitated else stored, "auto", subject.schemes("vae"))
    return vae_walk.VAESteps(network=network, ops=ops, converted=imitated)
