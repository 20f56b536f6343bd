"""Files that are recognized and refused by name: other networks, adapters, and quantized weights with scales.

Source of the names: the published files' keys, as listed in diffusers' `single_file_utils.py` and ComfyUI's
`model_detection.py`.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from undertow.checkpoints.files.gguf_header import ARCHITECTURE, language_model
from undertow.checkpoints.identify.text_architecture import is_text_encoder
from undertow.checkpoints.keymap.contents import Contents
from undertow.checkpoints.keymap.prefixes import TITLES, UNET_PREFIXES
from undertow.errors import UnknownCheckpoint, UnsupportedModel

SUPPORTED_MODELS = "undertow runs Stable Diffusion 1, 2 and XL and pixel U-Nets"
LOAD_AS_ADAPTER = "load it beside a base model as an adapter"
TEXTUAL_INVERSION = "a textual inversion"
ADD_TO_A_MODEL = "add it to a model with --embedding FILE, or service.add_embedding"

Shapes = Mapping[str, tuple[int, ...]]

# Order matters where one family's files contain another's names.
OTHER_NETWORKS: Mapping[str, tuple[str, ...]] = {
    "Stable Video Diffusion": (
        "input_blocks.1.0.time_stack.in_layers.0.weight",
        "down_blocks.0.resnets.0.spatial_res_block.conv1.weight",
    ),
    "an AnimateDiff motion module": (
        "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight",
        "mid_block.motion_modules.0.temporal_transformer.norm.weight",
    ),
    "Stable Diffusion 3": (
        "joint_blocks.0.x_block.attn.qkv.weight",
        "joint_blocks.0.context_block.adaLN_modulation.1.weight",
        "joint_blocks.0.context_block.adaLN_modulation.1.bias",
        "transformer_blocks.0.norm1_context.linear.weight",
    ),
    "Chroma": ("distilled_guidance_layer.in_proj.weight", "distilled_guidance_layer.in_proj.bias"),
    "FLUX.2": ("single_stream_modulation.lin.weight",),
    "HunyuanVideo": ("txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.weight",),
    "FLUX": (
        "double_blocks.0.img_attn.qkv.weight",
        "double_blocks.0.img_attn.norm.key_norm.scale",
        "single_transformer_blocks.0.attn.to_q.weight",
    ),
    "AuraFlow": ("double_layers.0.attn.w1q.weight", "joint_transformer_blocks.0.attn.to_q.weight"),
    "PixArt": ("adaln_single.linear.weight", "t_block.1.weight"),
    "HunyuanDiT": ("mlp_t5.0.weight", "text_embedder.linear_1.weight"),
    "Stable Cascade": ("clip_txt_mapper.weight", "down_blocks.1.0.channelwise.0.weight"),
    "Kandinsky 2": ("add_embedding.image_norm.weight", "encoder_hid_proj.image_embeds.weight"),
    "DeepFloyd IF": ("add_embedding.pool.positional_embedding", "encoder_hid_proj.weight"),
    "Zero123": ("cc_projection.weight",),
    "LTX-Video": ("patchify_proj.weight",),
    "Wan": ("head.modulation",),
    "Lumina 2": ("cap_embedder.0.weight",),
    "HiDream": ("double_stream_blocks.0.block.adaLN_modulation.1.weight",),
    "Sana": ("blocks.0.cross_attn.kv_linear.weight",),
    "Qwen-Image": ("transformer_blocks.0.img_mod.1.weight", "txt_in.text_norm.weight"),
}
"""Tensor names that only this model has, without the prefixes of U-Nets."""

OTHER_ARCHITECTURES: Mapping[str, str] = {
    "flux": "FLUX",
    "sd3": "Stable Diffusion 3",
    "aura": "AuraFlow",
    "chroma": "Chroma",
    "cosmos": "Cosmos",
    "hidream": "HiDream",
    "hyvid": "HunyuanVideo",
    "ltxv": "LTX-Video",
    "lumina2": "Lumina 2",
    "pixart": "PixArt",
    "qwen_image": "Qwen-Image",
    "wan": "Wan",
}
"""Networks by the `general.architecture` that ComfyUI-GGUF gives them; our own are "sd1" and "sdxl", and
stable-diffusion.cpp says nothing."""

OTHER_FILES: Mapping[str, tuple[str, ...]] = {
    "a Control-LoRA": ("lora_controlnet",),
    "an IP-Adapter": ("image_proj.proj.weight", "image_proj.latents", "ip_adapter.1.to_k_ip.weight"),
    "a T2I-Adapter": ("adapter.body.0.resnets.0.block1.weight", "body.0.block1.weight", "body.0.in_conv.weight"),
    TEXTUAL_INVERSION: ("emb_params", "string_to_param", "string_to_param.*", "clip_l", "clip_g", "text_encoders_0"),
    "a tiny autoencoder (TAESD)": ("taesd_decoder.1.weight", "decoder.layers.0.weight"),
    "a picture upscaler": ("model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight", "body.0.rdb1.conv1.weight"),
    "a CLIP vision encoder": ("vision_model.embeddings.patch_embedding.weight", "visual.conv1.weight"),
    "a T5 text encoder": ("encoder.block.0.layer.0.SelfAttention.q.weight",),
    "a language model": ("model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"),
}

OTHER_PIPELINES: Mapping[str, str] = {
    "StableDiffusionUpscalePipeline": "the Stable Diffusion x4 upscaler",
    "StableDiffusionLatentUpscalePipeline": "the Stable Diffusion latent upscaler",
    "StableDiffusionDepth2ImgPipeline": "Stable Diffusion 2 depth",
    "StableUnCLIPPipeline": "Stable Diffusion 2 unCLIP",
    "StableUnCLIPImg2ImgPipeline": "Stable Diffusion 2 unCLIP",
    "StableVideoDiffusionPipeline": "Stable Video Diffusion",
    "StableDiffusion3Pipeline": "Stable Diffusion 3",
    "FluxPipeline": "FLUX",
}
"""Other pipelines by class name, as they are called in refusals."""
NETWORKS = ("UNet2DConditionModel", "UNet2DModel")
"""The networks of diffusers that undertow is."""

_ADAPTER_TENSOR = re.compile(
    r".*\.(lora_(down|up|A|B)(\.default)?\.weight|lora\.(down|up)\.weight|hada_w[12]_[ab]|lokr_w[12](_[ab])?|"
    r"oft_blocks|dora_scale)"
)
_SCALED_TENSOR = re.compile(
    r"(.*\.)?(scaled_fp8|scale_weight|weight_scale|scale_input|input_scale|comfy_quant|weight_scb|SCB|absmax|quant_map"
    r"|weight\.(absmax|quant_map|quant_state\..+))"
)


def refuse_quantized(path: Path, names: Collection[str], metadata: Mapping[str, str]) -> None:
    """Refuses quantized weights that need scales. names: without those that `files.scaled` applies.

    Errors: `UnsupportedModel` (bitsandbytes, Nunchaku, other layers of ComfyUI).
    """
    packed = {name.removesuffix(".qweight") for name in names if name.endswith(".qweight")}
    if "svdquant" in metadata.get("quantization_config", "").lower() or any(
        f"{one}.wscales" in names for one in packed
    ):
        remedy = "use the float16 model that it was made from, or a GGUF file of it"
        raise UnsupportedModel(path, "a file of Nunchaku's 4-bit weights (SVDQuant, for NVIDIA GPUs)", remedy)
    scales = [name for name in names if _SCALED_TENSOR.fullmatch(name)]
    if scales or "_quantization_metadata" in metadata:
        shown = f" ({scales[0]})" if scales else ""
        raise UnsupportedModel(
            path,
            f"a file of quantized weights with scales{shown}",
            "use its float16, bfloat16, fp8 or int8_tensorwise form",
        )


def refuse_other_architectures(path: Path, names: Collection[str], metadata: Mapping[str, str]) -> None:
    """Refuses a GGUF file that says that it is another network, or has the names of a language model.

    Errors: `UnsupportedModel`.
    """
    architecture = metadata.get(ARCHITECTURE, "")
    if architecture in OTHER_ARCHITECTURES:
        raise UnsupportedModel(path, OTHER_ARCHITECTURES[architecture], SUPPORTED_MODELS)
    if "token_embd.weight" in names or any(name.startswith("blk.") for name in names):
        raise language_model(path, architecture)


def refuse_other_networks(path: Path, names: Collection[str]) -> None:
    """Refuses diffusion models that are not Stable Diffusion U-Nets. Errors: `UnsupportedModel`."""
    model = _named(names, OTHER_NETWORKS, UNET_PREFIXES)
    if model is not None:
        raise UnsupportedModel(path, model, SUPPORTED_MODELS)


def refuse_other_files(path: Path, names: Collection[str]) -> None:
    """Refuses other known kinds of files by name. Errors: `UnsupportedModel`."""
    for name in names:
        if _ADAPTER_TENSOR.fullmatch(name):
            raise UnsupportedModel(path, "a LoRA, not a model of its own", LOAD_AS_ADAPTER)
    model = _named(names, OTHER_FILES, ("",))
    if model == TEXTUAL_INVERSION:
        raise UnsupportedModel(path, f"{model}, not a model of its own", ADD_TO_A_MODEL)
    if model is not None:
        raise UnsupportedModel(path, f"{model}, not a model that makes pictures by itself", SUPPORTED_MODELS)


def refuse_unrecognized(
    path: Path, contents: Contents, *, known_as: str, remedy: str, wanted: str = "an adapter"
) -> NoReturn:
    """Refuses a file that is not what was expected, and says what it is instead, if that is known.

    contents: of the whole file. known_as: completes "none of its 7 tensors is ...". wanted: what was expected.
    Errors: `UnsupportedModel` for another network or kind of file, otherwise `UnknownCheckpoint`.
    """
    refuse_other_networks(path, contents.names)
    if contents.parts:
        held = ", ".join(TITLES[part] for part in contents.parts)
        problem, own = f"a model of its own ({held}), not {wanted}", "load it with `undertow.load`"
        raise UnknownCheckpoint(path, problem, f"{own}, and {remedy} here")
    refuse_other_files(path, contents.names)
    names = list(contents.names.values())
    if not names:
        raise UnknownCheckpoint(path, "it holds no tensors", remedy)
    some = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
    raise UnknownCheckpoint(path, f"none of its {len(names)} tensors is {known_as} ({some})", remedy)


def refuse_other_pipelines(folder: Path, index: Mapping[str, Any]) -> None:
    """Refuses pipelines around other networks. index: `model_index.json`. Errors: `UnsupportedModel`."""
    name = str(index.get("_class_name"))
    if name in OTHER_PIPELINES:
        raise UnsupportedModel(folder, OTHER_PIPELINES[name], SUPPORTED_MODELS)
    match index.get("unet"):
        case [_, str(kind)] if kind in NETWORKS:
            return
        case [_, str(kind)]:
            raise UnsupportedModel(folder, f"a {name} with a {kind}", SUPPORTED_MODELS)
        case _:
            raise UnsupportedModel(folder, f"a {name}, a pipeline without a U-Net", SUPPORTED_MODELS)


def refuse_other_parts(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuses the folder of a network by itself that is no U-Net. config: its config.json. Errors: `UnsupportedModel`
    and `UnknownCheckpoint` say where it is taken."""
    name = str(config.get("_class_name"))
    if name in ("ControlNetModel", "T2IAdapter"):
        kind = "ControlNet" if name == "ControlNetModel" else "T2I-Adapter"
        raise UnsupportedModel(folder, f"a {kind}", "load it beside a base model as an adapter")
    if is_text_encoder(config):
        problem = "a text encoder without a U-Net, which draws nothing by itself"
        raise UnknownCheckpoint(folder, problem, "give a whole model; in Python, this as `text=`")


def refuse_relatives(path: Path, shapes: Shapes) -> None:
    """Refuses U-Nets that look like Stable Diffusion's and work differently. shapes: by our names.

    Errors: `UnsupportedModel`.
    """
    for model in _relatives(shapes):
        raise UnsupportedModel(path, model, SUPPORTED_MODELS)


def _relatives(shapes: Shapes) -> Iterator[str]:
    in_channels = shapes["conv_in.weight"][1]
    context = shapes.get("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight", (0, 0))[1]
    added = shapes.get("add_embedding.linear_1.weight", shapes.get("class_embedding.linear_1.weight", (0, 0)))[1]
    if in_channels == 7:
        yield "the Stable Diffusion x4 upscaler (7 input channels)"
    if in_channels == 5:
        yield "Stable Diffusion 2 depth (5 input channels)"
    if context == 1024 and added in (1536, 2048):
        yield f"Stable Diffusion 2 unCLIP (image embeddings {added} wide)"
    if context == 2048 and "down_blocks.0.resnets.1.conv1.weight" not in shapes:
        yield "KOALA or another SDXL with one ResBlock a level"


def _named(names: Collection[str], table: Mapping[str, tuple[str, ...]], prefixes: tuple[str, ...]) -> str | None:
    names = set(names)
    return next(
        (
            model
            for model, signs in table.items()
            if any(prefix + sign in names for sign in signs for prefix in prefixes)
        ),
        None,
    )
