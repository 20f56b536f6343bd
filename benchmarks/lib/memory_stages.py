"""Each stage that is forecast, as it is really run: with random weights, in the layout in which models are loaded."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.lib.allocations import peak_bytes, seeded
from undertow.adapters.control.controlnet import ControlNet
from undertow.adapters.control.t2i import injections
from undertow.attention.chosen import kernel_named
from undertow.encoders.clip_config import ClipTextConfig
from undertow.encoders.clip_network import ClipText, ClipVision
from undertow.encoders.image_config import ClipVisionConfig
from undertow.memory.work import Subject, TextNetwork, VAENetwork, VisionNetwork, Work
from undertow.nn.adaptable import Conv2d, Linear, WeightRows
from undertow.nn.attention import ImageTokens
from undertow.nn.quantized import Network, quantize_layers
from undertow.quantization import Scheme, as_quantization
from undertow.training.checkpointing import checkpointing
from undertow.training.ema import ExponentialMovingAverage
from undertow.training.low_rank import TRANSFORMERS, TrainableUpdates, in_slots, unet_sites
from undertow.training.optimizer import adamw
from undertow.unet.conditioning import Conditioning, Ports, Residuals
from undertow.unet.config import ClassLabels, TextTime, UNetConfig
from undertow.unet.unet import UNet
from undertow.vae.autoencoder import AutoencoderKL
from undertow.vae.config import VAEConfig
from undertow.vae.latent_space import SD
from undertow.vae.precision import decode_safely, encode_safely


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A stage that is ready to run: networks and inputs are in memory. input_bytes: of the inputs."""

    run: Callable[[], Any]
    input_bytes: int


def measured(stage: str, subject: Subject, work: Work) -> int:
    """The allocator's peak of a stage above the weights, inputs included: of the second run, since the first fills
    caches that stay."""
    prepared = prepare(stage, subject, work)
    with torch.no_grad():
        prepared.run()
        return prepared.input_bytes + peak_bytes(prepared.run)


def prepare(stage: str, subject: Subject, work: Work, device: str = "cpu") -> Prepared:
    """A stage with random weights on a device."""
    with torch.device(device):
        return STAGES[stage](subject, work)


def denoise(subject: Subject, work: Work) -> Prepared:
    assert subject.unet is not None
    config = subject.unet
    unet = _quantized(_loaded(lambda: UNet(config, kernel_named(work.kernel)), work.dtype), subject.schemes("unet"))
    inputs = _inputs(config, subject, work)
    ports = _ports(unet, subject, work)
    features = _features(config, subject, work)
    return _prepared(lambda: unet(*inputs, ports), (inputs, ports, features))


def controlnet(subject: Subject, work: Work) -> Prepared:
    assert subject.controlnet is not None
    control, config = subject.controlnet, subject.controlnet.unet
    network = _loaded(lambda: ControlNet(control, kernel_named(work.kernel)), work.dtype)
    inputs = _inputs(config, subject, work)
    height, width = (side * network.hint_factor for side in work.cells(subject))
    hint = seeded((1, control.hint_in, height, width), _dtype(work.dtype)).clamp(0, 1)

    def run() -> object:
        embedded = network.embed_hint(hint)
        return network(*inputs, embedded.repeat(work.batch, 1, 1, 1), Ports(**_parts(work)))

    return _prepared(run, (inputs, hint))


def decode(subject: Subject, work: Work) -> Prepared:
    vae = _vae(subject.vae, work)
    latents = seeded((1, vae.config.latent_channels, *work.cells(subject)), vae.dtype)
    return _prepared(lambda: decode_safely(vae, latents, budget_bytes=work.decode_bytes), latents)


def encode(subject: Subject, work: Work) -> Prepared:
    vae = _vae(subject.vae, work)
    pixels = seeded((1, 3, *work.size), vae.dtype)
    return _prepared(lambda: encode_safely(vae, pixels, budget_bytes=work.decode_bytes), pixels)


def text(subject: Subject, work: Work) -> Prepared:
    """One encoder after the other, each for all chunks."""
    runs = [_text(network, work, subject.schemes("text")) for network in subject.text_encoders]

    def run() -> None:
        for one in runs:
            one()

    return Prepared(run=run, input_bytes=0)


def _text(network: TextNetwork, work: Work, schemes: tuple[Scheme, ...]) -> Callable[[], Tensor]:
    names = {field.name for field in fields(ClipTextConfig)}
    given = {name: getattr(network, name) for name in TextNetwork.__slots__ if name in names}
    config = ClipTextConfig(**given | {"projection": network.projection or network.width})
    clip = _loaded(lambda: ClipText(config, network.layers), work.text_dtype or work.dtype)
    clip = _quantized(clip, schemes)
    ids = torch.zeros(-(-work.tokens // network.positions), network.positions, dtype=torch.long)

    def run() -> Tensor:
        embeddings = clip.embeddings
        embedded = embeddings.token_embedding(ids)
        hidden = embedded + embeddings.position_embedding.weight[: ids.shape[1]]
        for layer in clip.encoder.layers:
            hidden = layer(hidden, None, causal=True)
        return clip.final_layer_norm(hidden)

    return run


def image(_: Subject, work: Work) -> Prepared:
    """The encoder of reference pictures, in the layout in which it is read: not channels-last."""
    config = ClipVisionConfig(**{name: getattr(work.image_encoder, name) for name in VisionNetwork.__slots__})
    dtype = work.image_dtype or "float32"
    network = _loaded(lambda: ClipVision(config), dtype, layout=torch.contiguous_format)
    pixels = seeded((work.references, config.channels, config.image_size, config.image_size), _dtype(dtype))
    return _prepared(lambda: network(pixels), pixels)


def train(subject: Subject, work: Work) -> Prepared:
    """One step of AdamW with a moving average, as `training.fit` takes it, of random weights: zeros learn nothing."""
    assert subject.unet is not None
    assert work.training is not None
    config, training = subject.unet, work.training
    work = replace(work, pictures=training.batch, branches=1, rows=None)
    unet = UNet(config).to(_dtype(work.dtype)).to(memory_format=torch.channels_last)
    inputs = _inputs(config, subject, work)
    sites = unet_sites(unet, TRANSFORMERS) if training.kind == "lora" else {}
    updates = TrainableUpdates(sites, training.rank, torch.Generator())
    learning: nn.Module = updates if sites else unet
    optimizer, average = adamw(learning, weight_decay=0.0), ExponentialMovingAverage(learning, 0.9)
    rows = WeightRows(slots=torch.zeros(work.batch, 1, dtype=torch.long), gains=torch.ones(work.batch, 1))
    ports = Ports(weights=rows) if sites else None
    wanted = training.checkpointing
    recomputed = wanted == "layers" if isinstance(wanted, str) else wanted

    def run() -> None:
        with torch.enable_grad(), in_slots(unet, updates) if sites else nullcontext():
            with checkpointing(unet, recomputed):
                prediction = unet(*inputs, ports)
                prediction.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            average.update(learning, 1)

    return _prepared(run, inputs)


STAGES: dict[str, Callable[[Subject, Work], Prepared]] = {
    "denoise": denoise,
    "controlnet": controlnet,
    "decode": decode,
    "encode": encode,
    "text": text,
    "image": image,
    "train": train,
}


def _prepared(run: Callable[[], Any], inputs: Any) -> Prepared:
    """The slots of LoRA and what names them are no inputs, and hardly any numbers."""
    return Prepared(run=run, input_bytes=sum(one.nbytes for one in _tensors(inputs)))


def _loaded(build: Callable[[], nn.Module], dtype: str, layout: torch.memory_format = torch.channels_last) -> Any:
    """The network with zeros for weights, without ever taking more than it keeps."""
    with torch.device("meta"):
        network = build().to(_dtype(dtype))
    network = network.to_empty(device=torch.get_default_device()).to(memory_format=layout)
    for tensor in network.parameters():
        tensor.requires_grad_(False).zero_()
    return network.eval()


def _quantized(network: Network, schemes: tuple[Scheme, ...]) -> Network:
    """With all linear layers in the first of the schemes, if there is one."""
    shapes = {name: tuple(one.shape) for name, one in network.named_parameters()}
    rules = None if not schemes else as_quantization(schemes[0])
    return network if rules is None else quantize_layers(network, rules.layers("", shapes))


def _dtype(name: str) -> torch.dtype:
    return getattr(torch, name)


def _vae(network: VAENetwork | None, work: Work) -> AutoencoderKL:
    assert network is not None
    names = {field.name for field in fields(VAEConfig)}
    given = {name: getattr(network, name) for name in VAENetwork.__slots__ if name in names}
    config = VAEConfig(**given, latent_space=SD)
    return _loaded(lambda: AutoencoderKL(config), work.vae_dtype or work.dtype)


def _inputs(config: UNetConfig, subject: Subject, work: Work) -> tuple[Tensor, Tensor, Conditioning]:
    rows, dtype = work.batch, _dtype(work.dtype)
    latents = seeded((rows, config.in_channels, *work.cells(subject)), dtype)
    text_time = config.added if isinstance(config.added, TextTime) else None
    conditioning = Conditioning(
        context=None if config.context_dim is None else seeded((rows, work.tokens, config.context_dim), dtype),
        pooled=None if text_time is None else seeded((rows, text_time.pooled_dim), dtype),
        time_ids=None if text_time is None else torch.ones(rows, text_time.ids),
        regions=_regions(work, subject) if work.regions else None,
        class_labels=torch.zeros(rows, dtype=torch.long) if isinstance(config.added, ClassLabels) else None,
    )
    return latents, torch.full((rows,), 500.0), conditioning


def _regions(work: Work, subject: Subject) -> Tensor:
    """Everything is seen everywhere: what is seen decides about no memory."""
    return torch.ones(work.batch, work.tokens, *work.cells(subject), dtype=torch.bool)


def _ports(unet: UNet, subject: Subject, work: Work) -> Ports | None:
    ports = Ports(
        weights=_slots(unet, work) if work.loras and not work.merged else None,
        residuals=_residuals(unet.config, subject, work) if work.controlnets or work.t2i_adapters else None,
        image=_image(unet.config, work) if work.image_tokens else None,
        **_parts(work),
    )
    return None if ports == Ports() else ports


def _parts(work: Work) -> dict[str, Any]:
    return {"feed_forward_chunks": work.feed_forward_chunks, "attention_in_parts": work.attention_in_parts}


def _slots(unet: UNet, work: Work) -> WeightRows:
    for layer in unet.modules():
        if isinstance(layer, Linear | Conv2d):
            layer.allocate_slots(work.lora_slots + 1, work.lora_rank)
    slots = torch.zeros(work.batch, work.loras, dtype=torch.long)
    return WeightRows(slots=slots, gains=torch.ones(work.batch, work.loras))


def _residuals(config: UNetConfig, subject: Subject, work: Work) -> Residuals:
    shapes, dtype = config.skip_shapes(*work.cells(subject)), _dtype(work.dtype)

    def zeros(count: int, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(count, *shape, dtype=dtype)

    running: dict[int, Tensor] = {}
    if work.t2i_adapters:
        running = {one.place: zeros(work.batch, shapes[one.place]) for one in injections(config) if one.place}
    return Residuals(
        skips=tuple(zeros(work.batch, shape) for shape in shapes) if work.controlnets else (),
        middle=zeros(work.batch, shapes[-1]) if work.controlnets else None,
        running=tuple(running.get(place) for place in range(len(shapes))) if running else (),
    )


def _features(config: UNetConfig, subject: Subject, work: Work) -> list[Tensor]:
    """What each T2I-Adapter made of its picture."""
    shapes, adapters = config.skip_shapes(*work.cells(subject)), work.t2i_adapters
    places = [one.place for one in injections(config) if one.place] if adapters else []
    return [torch.zeros(adapters, *shapes[place], dtype=_dtype(work.dtype)) for place in places]


def _image(config: UNetConfig, work: Work) -> dict[str, tuple[ImageTokens, ...]]:
    def tokens(width: int) -> Tensor:
        return seeded((work.batch, work.image_tokens, width), _dtype(work.dtype))

    return {
        site: (ImageTokens(keys=tokens(width), values=tokens(width), gain=torch.ones(work.batch)),)
        for site, width in config.cross_attentions().items()
    }


def _tensors(value: Any) -> list[Tensor]:
    """The tensors of records, mappings and sequences."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [one for part in value.values() for one in _tensors(part)]
    if isinstance(value, tuple | list):
        return [one for part in value for one in _tensors(part)]
    if hasattr(value, "__dataclass_fields__"):
        return [one for field in fields(value) for one in _tensors(getattr(value, field.name))]
    return []
