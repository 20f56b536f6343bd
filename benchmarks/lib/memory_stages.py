"""Each stage that is forecast, as it is really run: with random weights, in the layout in which models are loaded."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from benchmarks.lib.allocations import peak_bytes, seeded
from undertow.adapters.control.controlnet import ControlNet
from undertow.attention.choose import kernel_named
from undertow.encoders.clip_config import ClipTextConfig
from undertow.encoders.clip_network import ClipText
from undertow.memory.work import Subject, TextNetwork, VAENetwork, Work
from undertow.nn.adaptable import Conv2d, Linear, WeightRows
from undertow.nn.attention import ImageTokens
from undertow.unet.conditioning import Conditioning, Ports, Residuals
from undertow.unet.config import ClassLabels, TextTime, UNetConfig
from undertow.unet.unet import UNet
from undertow.vae.autoencoder import AutoencoderKL
from undertow.vae.config import VAEConfig
from undertow.vae.latent_space import SD
from undertow.vae.precision import decode_safely, encode_safely


def measured(stage: str, subject: Subject, work: Work) -> int:
    """The allocator's peak of a stage above the weights, inputs included."""
    return STAGES[stage](subject, work)


def denoise(subject: Subject, work: Work) -> int:
    assert subject.unet is not None
    unet = _loaded(UNet(subject.unet, kernel_named(work.kernel)), work.dtype)
    inputs = _inputs(subject.unet, subject, work)
    ports = _ports(unet, subject, work)
    held = sum(one.nbytes for one in _tensors((inputs, ports)) if one.numel() > work.batch * 16)
    return held + _peak(lambda: unet(*inputs, ports))


def controlnet(subject: Subject, work: Work) -> int:
    assert subject.controlnet is not None
    network = _loaded(ControlNet(subject.controlnet, kernel_named(work.kernel)), work.dtype)
    config = subject.controlnet.unet
    inputs = _inputs(config, subject, work)
    hint = seeded((work.batch, config.levels[0].channels, *work.cells(subject)), _dtype(work.dtype))
    held = sum(one.nbytes for one in _tensors((inputs, hint)))
    return held + _peak(lambda: network(*inputs, hint))


def decode(subject: Subject, work: Work) -> int:
    vae = _vae(subject.vae, work)
    height, width = work.cells(subject)
    latents = seeded((1, vae.config.latent_channels, height, width), vae.dtype)
    return latents.nbytes + _peak(lambda: decode_safely(vae, latents, budget_bytes=work.decode_bytes))


def encode(subject: Subject, work: Work) -> int:
    vae = _vae(subject.vae, work)
    pixels = seeded((1, 3, *work.size), vae.dtype)
    return pixels.nbytes + _peak(lambda: encode_safely(vae, pixels, budget_bytes=work.decode_bytes))


def text(subject: Subject, work: Work) -> int:
    """One encoder after the other, each for all chunks."""
    return max(_text(network, work) for network in subject.text_encoders)


def _text(network: TextNetwork, work: Work) -> int:
    names = {field.name for field in fields(ClipTextConfig)}
    given = {name: getattr(network, name) for name in TextNetwork.__slots__ if name in names}
    config = ClipTextConfig(**given | {"projection": network.projection or network.width})
    clip = _loaded(ClipText(config, network.layers), work.text_dtype or work.dtype)
    chunks = -(-work.tokens // network.positions)
    ids = torch.zeros(chunks, network.positions, dtype=torch.long)

    def run() -> Tensor:
        embeddings = clip.embeddings
        embedded = embeddings.token_embedding(ids)
        hidden = embedded + embeddings.position_embedding.weight[: ids.shape[1]]
        for layer in clip.encoder.layers:
            hidden = layer(hidden, None, causal=True)
        return clip.final_layer_norm(hidden)

    return _peak(run)


STAGES: dict[str, Callable[[Subject, Work], int]] = {
    "denoise": denoise,
    "controlnet": controlnet,
    "decode": decode,
    "encode": encode,
    "text": text,
}


@torch.inference_mode()
def _peak(run: Callable[[], Any]) -> int:
    """Of the second run: the first fills caches that stay."""
    run()
    return peak_bytes(run)


def _loaded(network: Any, dtype: str) -> Any:
    return network.to(_dtype(dtype)).to(memory_format=torch.channels_last).eval().requires_grad_(False)


def _dtype(name: str) -> torch.dtype:
    return getattr(torch, name)


def _vae(network: VAENetwork | None, work: Work) -> AutoencoderKL:
    assert network is not None
    names = {field.name for field in fields(VAEConfig)}
    given = {name: getattr(network, name) for name in VAENetwork.__slots__ if name in names}
    return _loaded(AutoencoderKL(VAEConfig(**given, latent_space=SD)), work.vae_dtype or work.dtype)


def _inputs(config: UNetConfig, subject: Subject, work: Work) -> tuple[Tensor, Tensor, Conditioning]:
    rows, dtype = work.batch, _dtype(work.dtype)
    latents = seeded((rows, config.in_channels, *work.cells(subject)), dtype)
    text_time = config.added if isinstance(config.added, TextTime) else None
    conditioning = Conditioning(
        context=None if config.context_dim is None else seeded((rows, work.tokens, config.context_dim), dtype),
        pooled=None if text_time is None else seeded((rows, text_time.pooled_dim), dtype),
        time_ids=None if text_time is None else torch.ones(rows, text_time.ids),
        class_labels=torch.zeros(rows, dtype=torch.long) if isinstance(config.added, ClassLabels) else None,
    )
    return latents, torch.full((rows,), 500.0), conditioning


def _ports(unet: UNet, subject: Subject, work: Work) -> Ports | None:
    ports = Ports(
        weights=_slots(unet, work) if work.loras and not work.merged else None,
        residuals=_residuals(unet.config, subject, work) if work.controlnets else None,
        image=_image(unet.config, work) if work.image_tokens else None,
    )
    return None if ports == Ports() else ports


def _slots(unet: UNet, work: Work) -> WeightRows:
    for layer in unet.modules():
        if isinstance(layer, Linear | Conv2d):
            layer.allocate_slots(work.lora_slots + 1, work.lora_rank)
    slots = torch.zeros(work.batch, work.loras, dtype=torch.long)
    return WeightRows(slots=slots, gains=torch.ones(work.batch, work.loras))


def _residuals(config: UNetConfig, subject: Subject, work: Work) -> Residuals:
    shapes, dtype = config.skip_shapes(*work.cells(subject)), _dtype(work.dtype)
    skips = tuple(torch.zeros(work.batch, *shape, dtype=dtype) for shape in shapes)
    return Residuals(skips=skips, middle=torch.zeros_like(skips[-1]))


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
