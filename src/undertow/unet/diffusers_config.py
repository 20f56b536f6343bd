"""Reading and writing diffusers' `config.json`: the one place that knows its fields and their quirks.

Quirks (diffusers 0.42): `attention_head_dim` holds the number of heads in UNet2DConditionModel and the width of a head
in UNet2DModel (trap T5, huggingface/diffusers#2011); `transformer_layers_per_block` has an unused entry for levels
without attention.
"""

from collections.abc import Mapping
from types import NoneType
from typing import Any

from undertow.errors import ConfigError
from undertow.json_fields import is_number, is_whole
from undertow.unet.config import ClassLabels, CrossAttention, Level, Middle, SelfAttention, TextTime, UNetConfig

Json = Mapping[str, Any]

CONDITIONAL = "UNet2DConditionModel"
UNCONDITIONAL = "UNet2DModel"

ONLY_SUPPORTED: dict[str, tuple[object, ...]] = {
    "act_fn": ("silu", "swish"),
    "center_input_sample": (False,),
    "resnet_time_scale_shift": ("default",),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_pre_norm": (True,),
    "downsample_padding": (1,),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "mid_block_scale_factor": (1,),
    "only_cross_attention": (False,),
    "mid_block_only_cross_attention": (None, False),
    "dual_cross_attention": (False,),
    "cross_attention_norm": (None,),
    "attention_type": ("default",),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "addition_embed_type": (None, "text_time"),
    "attn_norm_num_groups": (None,),
    "time_embedding_type": ("positional",),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
}
"""Fields that diffusers' classes have and the values that undertow's U-Net implements."""

FIELD_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("in_channels", "out_channels", "norm_num_groups"), (int,)),
    **dict.fromkeys(("addition_time_embed_dim", "projection_class_embeddings_input_dim"), (int, NoneType)),
    **dict.fromkeys(("sample_size", "time_embedding_dim", "time_cond_proj_dim"), (int, NoneType)),
    **dict.fromkeys(("num_class_embeds", "null_class_label", "timestep_sinusoid_dim"), (int, NoneType)),
    **dict.fromkeys(("freq_shift", "norm_eps", "dropout"), (int, float)),
    **dict.fromkeys(("flip_sin_to_cos", "use_linear_projection", "add_attention"), (bool,)),
    "upcast_attention": (bool, NoneType),
    **dict.fromkeys(("block_out_channels", "down_block_types", "up_block_types"), (list, tuple)),
    "time_ids": (int,),
    "max_timestep": (int, float, NoneType),
    "attention_head_dim": (int, list, tuple, NoneType),
}
"""What JSON must hold in the other fields that are read as they are."""


WORDS: Mapping[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    tuple: "a tuple",
    NoneType: "null",
}


def config_from_diffusers(json: Json) -> UNetConfig:
    """The architecture that a diffusers U-Net config describes. Errors: `ConfigError` names the field."""
    for field, allowed in ONLY_SUPPORTED.items():
        if field in json and json[field] not in allowed:
            raise ConfigError(field, json[field], f"undertow supports only {' or '.join(map(repr, allowed))}")
    for field, types in FIELD_TYPES.items():
        if field in json and not _is_of(json[field], types):
            raise ConfigError(field, json[field], f"must be {' or '.join(WORDS[kind] for kind in types)}")
    match json.get("_class_name", CONDITIONAL):
        case "UNet2DConditionModel":
            return _read_conditional(json)
        case "UNet2DModel":
            return _read_unconditional(json)
        case other:
            raise ConfigError("_class_name", other, f"must be {CONDITIONAL} or {UNCONDITIONAL}")


def config_to_diffusers(config: UNetConfig) -> dict[str, Any]:
    """The config as diffusers' `config.json`.

    Four of our fields have no place there. They are written under our own names where they are not the usual, and
    diffusers ignores them with a warning: `null_class_label`, `time_ids`, `max_timestep`, and `timestep_sinusoid_dim`
    when it is not the first level's width (such a network does not load in diffusers). Errors: `ConfigError` for
    mixtures that diffusers' classes cannot express.
    """
    return _write_unconditional(config) if config.context_dim is None else _write_conditional(config)


def _read_conditional(json: Json) -> UNetConfig:
    channels = _channels(json)
    count = len(channels)
    heads_field = "attention_head_dim" if json.get("num_attention_heads") is None else "num_attention_heads"
    heads = _per_level(json, heads_field, count, default=8)
    depths = _per_level(json, "transformer_layers_per_block", count, default=1)
    decoder: list[Any] = [None] * count
    if json.get("reverse_transformer_layers_per_block") is not None:
        decoder = _per_level(json, "reverse_transformer_layers_per_block", count, default=1)[::-1]
    resnets = _per_level(json, "layers_per_block", count, default=2)
    down_types = json.get("down_block_types", ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"])
    up_types = json.get("up_block_types", ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3)
    kinds = _kinds(down_types, up_types, count, "CrossAttnDownBlock2D")
    levels = tuple(
        Level(
            channels=channels[i],
            resnets=resnets[i],
            attention=CrossAttention(
                heads=heads[i],
                depth=_depth(depths[i]),
                decoder_depth=_decoder_depth(depths[i], decoder[i]),
            )
            if kinds[i]
            else None,
        )
        for i in range(count)
    )
    context_dim = _field(json, "cross_attention_dim")
    if not is_whole(context_dim):
        raise ConfigError("cross_attention_dim", context_dim, "undertow supports one width for all levels")
    return UNetConfig(
        levels=levels,
        middle=_read_conditional_middle(json, heads[-1], _depth(depths[-1])),
        context_dim=context_dim,
        linear_projection=json.get("use_linear_projection", False),
        added=_read_added(json),
        guidance_dim=json.get("time_cond_proj_dim"),
        upcast_attention=bool(json.get("upcast_attention", False)),
        **_read_common(json, default_channels=4),
    )


def _read_conditional_middle(json: Json, heads: int, depth: Any) -> Middle:
    match json.get("mid_block_type", "UNetMidBlock2DCrossAttn"):
        case "UNetMidBlock2DCrossAttn":
            return Middle(attention=CrossAttention(heads=heads, depth=depth))
        case "UNetMidBlock2D":
            return Middle(resnets=1)
        case other:
            raise ConfigError("mid_block_type", other, "undertow supports UNetMidBlock2DCrossAttn or UNetMidBlock2D")


def _read_unconditional(json: Json) -> UNetConfig:
    channels = _channels(json)
    count = len(channels)
    down_types = json.get("down_block_types", ["DownBlock2D"] + ["AttnDownBlock2D"] * 3)
    up_types = json.get("up_block_types", ["AttnUpBlock2D"] * 3 + ["UpBlock2D"])
    kinds = _kinds(down_types, up_types, count, "AttnDownBlock2D")
    resnets = _per_level(json, "layers_per_block", count, default=2)
    head_dim = json.get("attention_head_dim", 8)

    def attention(width: int) -> SelfAttention:
        if not isinstance(head_dim, int | None) or (head_dim is not None and (head_dim < 1 or width % head_dim)):
            raise ConfigError("attention_head_dim", head_dim, f"must divide the level's {width} channels")
        return SelfAttention(heads=1 if head_dim is None else width // head_dim)

    if json.get("mid_block_type", "UNetMidBlock2D") != "UNetMidBlock2D":
        raise ConfigError("mid_block_type", json["mid_block_type"], "undertow supports UNetMidBlock2D")
    return UNetConfig(
        levels=tuple(
            Level(channels=width, resnets=resnets[i], attention=attention(width) if kinds[i] else None)
            for i, width in enumerate(channels)
        ),
        middle=Middle(attention=attention(channels[-1]) if json.get("add_attention", True) else None),
        added=_read_added(json),
        **_read_common(json, default_channels=3),
    )


def _read_common(json: Json, default_channels: int) -> dict[str, Any]:
    sample_size = json.get("sample_size")
    return {
        "in_channels": json.get("in_channels", default_channels),
        "out_channels": json.get("out_channels", default_channels),
        "sinusoid_dim": json.get("timestep_sinusoid_dim"),
        "cos_first": json.get("flip_sin_to_cos", True),
        "frequency_shift": float(json.get("freq_shift", 0)),
        "time_dim": json.get("time_embedding_dim"),
        "norm_groups": json.get("norm_num_groups", 32),
        "norm_eps": json.get("norm_eps", 1e-5),
        "dropout": json.get("dropout", 0.0),
        **({} if sample_size is None else {"sample_size": sample_size}),
        **({"max_timestep": json["max_timestep"]} if "max_timestep" in json else {}),
    }


def _read_added(json: Json) -> TextTime | ClassLabels | None:
    if json.get("addition_embed_type") == "text_time":
        dim = _field(json, "addition_time_embed_dim")
        inputs = _field(json, "projection_class_embeddings_input_dim")
        # Base has six ids (2816 = 1280 + 6 x 256), the refiner five (2560): told apart by what is left for the text.
        ids = json.get("time_ids", 5 if inputs == 2560 else 6)
        return TextTime(pooled_dim=inputs - ids * dim, ids=ids, sinusoid_dim=dim)
    rows = json.get("num_class_embeds")
    if rows is None:
        return None
    null = json.get("null_class_label") is not None
    return ClassLabels(count=rows - null, null=null)


def _write_conditional(config: UNetConfig) -> dict[str, Any]:
    attentions = [level.attention for level in config.levels]
    middle = config.middle.attention
    if any(isinstance(kind, SelfAttention) for kind in (*attentions, middle)):
        raise ConfigError("levels", "SelfAttention beside text", "diffusers' UNet2DConditionModel has no such mixture")
    if config.middle.resnets != (2 if middle else 1):
        raise ConfigError("middle.resnets", config.middle.resnets, "diffusers has 2 with attention and 1 without")
    deepest = next(kind for kind in (*attentions[::-1], middle) if isinstance(kind, CrossAttention))
    heads = [kind.heads if isinstance(kind, CrossAttention) else deepest.heads for kind in attentions]
    depths = [kind.depth if isinstance(kind, CrossAttention) else 1 for kind in attentions]
    if isinstance(middle, CrossAttention):
        if attentions[-1] is None:
            heads[-1], depths[-1] = middle.heads, middle.depth
        elif (heads[-1], depths[-1]) != (middle.heads, middle.depth):
            raise ConfigError("middle.attention", middle, "diffusers repeats the last level's heads and depth")
    uneven = any(isinstance(depth, tuple) for depth in depths) or any(
        isinstance(kind, CrossAttention) and kind.decoder_depth is not None for kind in attentions
    )
    json: dict[str, Any] = {
        "_class_name": CONDITIONAL,
        **_write_common(config),
        "down_block_types": ["CrossAttnDownBlock2D" if kind else "DownBlock2D" for kind in attentions],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else "UNetMidBlock2D",
        "up_block_types": ["CrossAttnUpBlock2D" if kind else "UpBlock2D" for kind in attentions[::-1]],
        "attention_head_dim": heads,
        "transformer_layers_per_block": [list(d) if isinstance(d, tuple) else d for d in depths],
        "cross_attention_dim": config.context_dim,
        "use_linear_projection": config.linear_projection,
        "upcast_attention": config.upcast_attention,
        "time_cond_proj_dim": config.guidance_dim,
    }
    if uneven:
        json["reverse_transformer_layers_per_block"] = [
            list(level.decoder_depths()) if level.attention else 1 for level in config.levels[::-1]
        ]
    match config.added:
        case TextTime(pooled_dim=pooled, ids=ids, sinusoid_dim=dim):
            json |= {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": dim,
                "projection_class_embeddings_input_dim": pooled + ids * dim,
            }
            if _read_added(json) != config.added:
                json["time_ids"] = ids
        case _:
            json |= _write_labels(config)
    return json


def _write_unconditional(config: UNetConfig) -> dict[str, Any]:
    parts = (*config.levels, Level(channels=config.levels[-1].channels, attention=config.middle.attention))
    widths = {part.channels // part.attention.heads for part in parts if part.attention}
    if len(widths) > 1:
        raise ConfigError("levels", sorted(widths), "diffusers' UNet2DModel has one head width for all levels")
    if config.middle.resnets != 2:
        raise ConfigError("middle.resnets", config.middle.resnets, "diffusers' UNet2DModel has 2")
    return {
        "_class_name": UNCONDITIONAL,
        **_write_common(config),
        "down_block_types": ["AttnDownBlock2D" if level.attention else "DownBlock2D" for level in config.levels],
        "mid_block_type": "UNetMidBlock2D",
        "add_attention": config.middle.attention is not None,
        "up_block_types": ["AttnUpBlock2D" if level.attention else "UpBlock2D" for level in config.levels[::-1]],
        "attention_head_dim": next(iter(widths), 8),
        **_write_labels(config),
    }


def _write_common(config: UNetConfig) -> dict[str, Any]:
    standard = config.timestep_sinusoid_dim == config.levels[0].channels
    return {
        "sample_size": config.sample_size,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": config.block_out_channels,
        "layers_per_block": config.layers_per_block,
        "flip_sin_to_cos": config.cos_first,
        "freq_shift": int(config.frequency_shift) if config.frequency_shift % 1 == 0 else config.frequency_shift,
        "time_embedding_dim": config.time_dim,
        "norm_num_groups": config.norm_groups,
        "norm_eps": config.norm_eps,
        "dropout": config.dropout,
        **({} if standard else {"timestep_sinusoid_dim": config.timestep_sinusoid_dim}),
        **({} if config.max_timestep == 1000 else {"max_timestep": config.max_timestep}),
    }


def _write_labels(config: UNetConfig) -> dict[str, Any]:
    if not isinstance(config.added, ClassLabels):
        return {}
    null = {"null_class_label": config.added.count} if config.added.null else {}
    return {"num_class_embeds": config.added.rows, **null}


def _is_of(value: object, types: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in types
    return is_number(value) if float in types and value is not None else isinstance(value, types)


def _field(json: Json, name: str) -> Any:
    if json.get(name) is None:
        raise ConfigError(name, json.get(name), "is required")
    return json[name]


def _per_level(json: Json, name: str, count: int, default: int) -> list[Any]:
    """A number for each level, or a list of numbers where its ResBlocks differ."""
    value = json.get(name, default)
    values = [value] * count if is_whole(value) else value
    if not isinstance(values, list | tuple) or len(values) != count or not all(map(_is_depth, values)):
        raise ConfigError(name, value, f"must be one number or {count}, one per level")
    return list(values)


def _is_depth(value: object) -> bool:
    return all(map(is_whole, value)) if isinstance(value, list | tuple) else is_whole(value)


def _decoder_depth(depth: Any, decoder: Any) -> Any:
    """One number where all are equal, and `None` where that is the encoder's too: one form for one architecture."""
    if isinstance(decoder, list | tuple) and len(set(decoder)) == 1:
        decoder = decoder[0]
    return None if decoder == depth else _depth(decoder)


def _channels(json: Json) -> list[int]:
    value = _field(json, "block_out_channels")
    if not isinstance(value, list | tuple) or not all(map(is_whole, value)):
        raise ConfigError("block_out_channels", value, "must be a list of whole numbers")
    return list(value)


def _depth(value: Any) -> Any:
    """A JSON list as a tuple; numbers and `None` as they are."""
    return tuple(value) if isinstance(value, list | tuple) else value


def _kinds(down: list[str], up: list[str], count: int, attentive: str) -> list[bool]:
    """Which levels have attention; decoder types must mirror the encoder's."""
    plain = "DownBlock2D"
    for kind in down:
        if kind not in (attentive, plain):
            raise ConfigError("down_block_types", kind, f"undertow supports {attentive} and {plain} here")
    mirrored = [kind.replace("Down", "Up") for kind in down[::-1]]
    if len(down) != count or list(up) != mirrored:
        raise ConfigError("up_block_types", up, f"must mirror down_block_types over {count} levels: {mirrored}")
    return [kind == attentive for kind in down]
