"""A CLIP text network, of which only the layers that someone reads are run."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from undertow.encoders.clip_config import KINDS, PUBLISHED, ClipTextConfig, Kind, config_from_transformers
from undertow.encoders.clip_network import ClipText
from undertow.encoders.clip_tensors import build_clip
from undertow.encoders.tokenizer import OfficialTokenizer, Tokenizer
from undertow.errors import ConfigError, InvalidInput
from undertow.quantization import Scheme
from undertow.shapes import Sequence

Pooled = Float[Tensor, "batch pooled_dim"]


@dataclass(frozen=True, kw_only=True)
class OutputSelection:
    """What of a text network a U-Net was trained to read.

    skip: which layer, counted from the end: 1 is the last (A1111's and stable-diffusion.cpp's clip skip). final_norm:
    whether the network's last LayerNorm is applied to it. pooled: whether the projected vector at the end of the text
    is read too.
    """

    skip: int
    final_norm: bool
    pooled: bool = False


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """tokens: hidden states of the layer that was asked for. pooled: the projected vector, if asked for."""

    tokens: Sequence
    pooled: Pooled | None = None


class TextEncoder(nn.Module):
    """One text network with its tokenizer.

    Runs no layer behind the last one that is read, so that a damaged layer which nothing reads does no harm. `clip` is
    the network, `projection` the matrix behind the pooled vector, where the checkpoint has one.
    """

    def __init__(
        self, kind: Kind, config: ClipTextConfig, clip: ClipText, projection: nn.Linear | None, tokenizer: Tokenizer
    ):
        marks = max(tokenizer.bos, tokenizer.eos)
        if marks >= config.vocabulary:
            raise ConfigError(
                "vocabulary",
                config.vocabulary,
                f"must hold the tokenizer's marks, up to {marks}: this {kind} was trained with another tokenizer; "
                "load it from a pipeline folder that has that one",
            )
        super().__init__()
        self.kind: Kind = kind
        self.config = config
        self.clip = clip
        self.projection = projection
        self.tokenizer = tokenizer
        self._instead: tuple[TextEncoder, Mapping[str, Tensor]] | None = None

    def with_weights(self, weights: Mapping[str, Tensor]) -> "TextEncoder":
        """The same encoder with other weights, by the names of its parameters; it itself does not change."""
        other = copy.copy(self)
        other._instead = (self, weights)
        return other

    @classmethod
    def from_tensors(
        cls,
        kind: Kind,
        tensors: Mapping[str, Tensor],
        *,
        config: ClipTextConfig | Mapping[str, Any] | None = None,
        tokenizer: Tokenizer | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        source: str | Path = "text encoder",
        quantized: Mapping[str, Scheme] | None = None,
    ) -> "TextEncoder":
        """A text encoder from tensors with transformers' names, with or without `text_model.` in front.

        The network is built without memory and takes the tensors one by one; a lazy mapping is read one tensor at a
        time. config: ours, or the contents of transformers' `config.json`; None takes the published architecture.
        tokenizer: None takes the official vocabulary. dtype: None keeps the token embedding's for everything.
        quantized: layers whose tensors are codes and scales (`nn.quantized`).
        Errors: `KeyMismatch` names `source` and the tensors missing, unexpected or of another shape; `ConfigError`,
        `MissingDependency`.
        """
        if kind not in KINDS:
            raise ConfigError("kind", kind, f"must be one of {', '.join(KINDS)}")
        if config is None:
            config = PUBLISHED[kind]
        elif isinstance(config, Mapping):
            config = config_from_transformers(config, kind)
        clip, projection = build_clip(
            kind,
            config,
            tensors,
            dtype=dtype,
            device=device,
            source=source,
            quantized={} if quantized is None else quantized,
        )
        chosen = OfficialTokenizer() if tokenizer is None else tokenizer
        return cls(kind, config, clip, projection, chosen).eval()

    @property
    def pad(self) -> int:
        """The id behind the end mark: the tokenizer's own, else the end mark for CLIP-L and 0 for OpenCLIP."""
        if self.tokenizer.pad is not None:
            return self.tokenizer.pad
        return self.tokenizer.eos if self.kind == "clip_l" else 0

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and so of the hidden states."""
        return self.clip.embeddings.token_embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.clip.embeddings.token_embedding.weight.device

    def tensors(self, *, prefix: str = "text_model.") -> dict[str, Tensor]:
        """The weights with transformers' names, `prefix` in front of all but the projection's."""
        named = {prefix + name: tensor for name, tensor in self.clip.state_dict().items()}
        if self.projection is not None:
            named["text_projection.weight"] = self.projection.weight
        return named

    def forward(
        self,
        ids: Int[Tensor, "batch tokens"],
        selection: OutputSelection,
        *,
        replaced: Float[Tensor, "batch tokens dim"] | None = None,
        replace_at: Bool[Tensor, "batch tokens"] | None = None,
        visible: Bool[Tensor, "batch tokens"] | None = None,
    ) -> Hidden:
        """Hidden states of token ids, as `selection` says.

        replaced, replace_at: token embeddings for the places of textual inversions, and which places those are.
        visible: False where a token is hidden from all others. Errors: `InvalidInput` for a layer that is not there.
        """
        if self._instead is not None:
            base, weights = self._instead
            options = {"replaced": replaced, "replace_at": replace_at, "visible": visible}
            return torch.func.functional_call(base, dict(weights), (ids, selection), options)
        run = self._layers(selection)
        embeddings = self.clip.embeddings
        embedded = embeddings.token_embedding(ids)
        if replaced is not None and replace_at is not None:
            embedded = torch.where(replace_at[..., None], replaced.to(embedded), embedded)
        hidden = embedded + embeddings.position_embedding.weight[: ids.shape[1]]
        mask = None if visible is None else _causal(visible)
        # A copy, since iterating over part of a ModuleList would register its layers anew.
        layers = list(self.clip.encoder.layers)
        for layer in layers[:run]:
            hidden = layer(hidden, mask, causal=mask is None)
        tokens = self.clip.final_layer_norm(hidden) if selection.final_norm else hidden
        if not selection.pooled:
            return Hidden(tokens=tokens)
        for layer in layers[run:]:
            hidden = layer(hidden, mask, causal=mask is None)
        return Hidden(tokens=tokens, pooled=self._pooled(ids, self.clip.final_layer_norm(hidden)))

    def _layers(self, selection: OutputSelection) -> int:
        """How many layers run for the tokens."""
        run = self.config.layers - (selection.skip - 1)
        present = len(self.clip.encoder.layers)
        if not 1 <= run <= present:
            last = self.config.layers - present + 1
            raise InvalidInput("clip_skip", selection.skip, f"{last} to {self.config.layers} for {self.kind}")
        return run

    def _pooled(self, ids: Int[Tensor, "batch tokens"], normed: Sequence) -> Pooled:
        if self.projection is None:
            raise InvalidInput("pooled", "asked for", f"a network with a projection, {self.kind} here has none")
        # The first end mark: padding may repeat it, and what follows it is not part of the text.
        end = (ids == self.tokenizer.eos).int().argmax(-1)
        return self.projection(normed[torch.arange(ids.shape[0], device=ids.device), end])


def parameter_name(name: str) -> str:
    """The parameter of a `TextEncoder` that transformers calls `name`, with or without its prefix."""
    if name == "text_projection.weight":
        return "projection.weight"
    return "clip." + name.removeprefix("text_model.")


def _causal(visible: Bool[Tensor, "batch tokens"]) -> Bool[Tensor, "batch 1 tokens tokens"]:
    """Each token sees the visible ones up to itself. The first is always visible, so that no row is empty (trap T9)."""
    tokens = visible.shape[1]
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=visible.device).tril()
    first = torch.arange(tokens, device=visible.device) == 0
    return causal & (visible | first)[:, None, None, :]
