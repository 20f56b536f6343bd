"""Command lines of strangers, by kind: Hypothesis draws what is wrong with them.

What would be allowed and last long is left out: pictures that are large but may be drawn, and many steps.
"""

import json
import typing
from collections.abc import Callable, Mapping
from copy import deepcopy
from enum import EnumType
from functools import cache
from typing import Any

import typer
from hypothesis import strategies as st

from tests.fuzz.files import Json, described, embedded_json, embedded_text, picture, safetensors, with_header
from tests.fuzz.sandbox import Case

Cases = st.SearchStrategy[Case]

DRAW = ("generate", "--steps", "1", "-n", "1", "--size", "64x64", "--no-show")

LETTERS = st.text(st.characters(codec="utf-8") | st.sampled_from("\x1b\0\r\n\u202e'\"\\%{}[]<>:|@=,."), max_size=30)
HOSTILE = st.sampled_from(
    (
        *(None, True, False, -1, 0, 1, 2, 7, 10**6, 10**9, 10**18, 10**30, -(10**9), 0.5, 1.5, -1.0, 1e-300, 1e300),
        *(float("nan"), float("inf"), "", "abc", "1", "\x1b[31m", "a\0b", "../x", "/etc/passwd", "a/b", "é" * 300),
        *([], {}, [1], [[]], {"a": 1}, [None], ["a"], [1, 2], [1.5, "x"], [64, 64], [10**9, 10**9]),
    )
)
JSON = st.recursive(
    HOSTILE, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(LETTERS, inner, max_size=3), max_leaves=5
)
NUMBERS = ["-1", "0", "1", "2", "1e-9", "0.5", "100000000", "1" + "0" * 30, "nan", "inf", "-inf", "1e300", "x" * 5000]
VALUES = st.sampled_from(
    (
        *NUMBERS,
        *("", "abc", "1,2", "a=b", "a@1", "@", "=", "1x1", "1000000x1000000", "0x0", "\x1b[31m", "0x10", "\u0661", "-"),
        *("picture.png", "folder", "pipe", "/dev/null", "/dev/zero", "missing.png", "owner/name", "x.safetensors"),
    )
)
_MARKS = (
    *("apple", "(", ")", "[", "]", "((", ":1.2)", ":-1e9)", "AND", "BREAK", "<lora:mosaic:1>", "{a|b}", '"a"', ".and("),
    *(".blend(", ".swap(", "1,", "++", "--", "embedding:x", "\\(", "[a:b:0.5]", "[a|b]", ":x:", "+" * 99),
)
PROMPTS = st.one_of(
    st.text(st.sampled_from("()[]{}<>:|,.+-_\"'\\ \n0123456789abcé🍎") | st.characters(codec="utf-8"), max_size=120),
    st.lists(st.sampled_from(_MARKS), max_size=30).map(" ".join),
)


@st.composite
def changed(draw: st.DrawFn, document: Json) -> Json:
    """A JSON object with one to three of its values replaced, removed or added."""
    found: Any = deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        holder = found
        while isinstance(holder, dict | list) and holder:
            key = draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
            if isinstance(holder[key], dict | list) and holder[key] and draw(st.booleans()):
                holder = holder[key]
                continue
            match draw(st.integers(0, 5)):
                case 0:
                    holder.pop(key)
                case 1 if isinstance(holder, dict):
                    holder[draw(LETTERS)] = draw(JSON)
                case _:
                    holder[key] = draw(JSON)
            break
    return found


@st.composite
def bent(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes of a file, some of them changed, or cut off."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        found[draw(st.integers(0, len(found) - 1))] = draw(st.sampled_from([0, 1, 127, 128, 255]) | st.integers(0, 255))
    return bytes(found[: draw(st.integers(0, len(found)))] if draw(st.integers(0, 3)) == 0 else found)


SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 8, 96, 192, 320, 10**6, 10**12]), max_size=5)
PARTS = ("lora_down.weight", "lora_up.weight", "alpha", "hada_w1_a", "hada_w1_b", "lokr_w1", "lokr_w2", "dora_scale")
LAYERS = (
    "lora_unet_down_blocks_1_attentions_0_proj_in",
    "lora_unet_mid_block_resnets_0_conv1",
    "lora_te_text_model_encoder_layers_0_mlp_fc1",
    "unet.down_blocks.1.attentions.0.proj_in",
    "lora_unet_input_blocks_4_1_proj_in",
)
NAMES = (
    st.tuples(st.sampled_from(LAYERS), st.sampled_from((*PARTS, "lora_A.weight", "lora_B.weight", "diff"))).map(
        ".".join
    )
    | st.sampled_from(
        ["conv_in.weight", "model.diffusion_model.input_blocks.0.0.weight", "emb_params", "clip_l", "clip_g"]
    )
    | st.sampled_from(["encoder.conv_in.weight", "string_to_param.*", "ip_adapter.1.to_k_ip.weight", "lora_controlnet"])
    | st.sampled_from(
        ["image_proj.proj.weight", "input_hint_block.0.weight", "controlnet_cond_embedding.conv_in.weight"]
    )
    | st.sampled_from(["text_model.embeddings.token_embedding.weight", "adapter.body.0.in_conv.weight", "unet:0:up"])
    | LETTERS
)
TENSORS = st.dictionaries(
    NAMES,
    st.tuples(st.sampled_from(["F32", "F16", "BF16", "I64", "U8", "F8_E4M3", "BOOL", "X"]) | JSON, SHAPES | JSON),
    max_size=6,
)
METADATA = st.none() | st.dictionaries(
    st.sampled_from(
        ["ss_network_module", "ss_network_args", "lora_adapter_metadata", "modelspec.architecture", "format"]
    )
    | st.sampled_from(
        ["undertow.unet_config", "undertow.vae_config", "undertow.text_config", "unet", "ss_network_alpha"]
    )
    | LETTERS,
    LETTERS | JSON.map(json.dumps) | st.sampled_from(["networks.lora", "lycoris.kohya"]),
    max_size=4,
)
USES = st.sampled_from(
    [
        ("inspect", "f.safetensors"),
        ("inspect", "f.safetensors", "--model", "emoji"),
        (*DRAW, "apple", "--lora", "f.safetensors"),
        (*DRAW, "apple", "--model", "f.safetensors"),
        (*DRAW, "apple", "--embedding", "f.safetensors"),
        (*DRAW, "apple", "--adapter", "f.safetensors=picture.png"),
        ("convert", "f.safetensors", "out.safetensors", "--to", "ldm"),
        ("adapters", "explain", "f.safetensors@1", "mosaic@1"),
    ]
)


USES_OF_LORA = st.sampled_from(
    [
        ("inspect", "f.safetensors", "--model", "emoji"),
        (*DRAW, "apple", "--lora", "f.safetensors"),
        ("adapters", "explain", "f.safetensors@1", "mosaic@1"),
    ]
)


@cache
def _mosaic() -> Json:
    """The header of an embedded LoRA, of which little is left."""
    from undertow.embedded import embedded_models

    content = (embedded_models()["emoji"] / "adapters" / "mosaic.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = header.pop("__metadata__")
    kept = sorted(header.items(), key=lambda item: item[1]["data_offsets"])[:6]
    return {"__metadata__": metadata, **dict(kept)}


FITTING: Mapping[str, tuple[int, ...]] = {
    "lora_unet_down_blocks_1_attentions_0_proj_in": (192, 192, 1, 1),
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q": (192, 192),
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k": (192, 192),
}
"""Layers of the embedded model, and the shapes of their weights."""


@st.composite
def near(draw: st.DrawFn) -> bytes:
    """A LoRA that fits the embedded model, or did before one of its shapes was changed."""
    tensors: dict[str, tuple[Any, Any]] = {}
    for layer in draw(st.lists(st.sampled_from(sorted(FITTING)), min_size=1, unique=True)):
        outputs, inputs, *kernel = FITTING[layer]
        rank, kind = draw(st.integers(1, 4)), draw(st.sampled_from(["F32", "F16", "BF16"]))
        tensors[f"{layer}.lora_down.weight"] = kind, [rank, inputs, *kernel]
        tensors[f"{layer}.lora_up.weight"] = kind, [outputs, rank, *kernel]
        if draw(st.booleans()):
            tensors[f"{layer}.alpha"] = "F32", []
    if draw(st.integers(0, 2)) == 0:
        name = draw(st.sampled_from(sorted(tensors)))
        tensors[name] = (tensors[name][0], draw(SHAPES))
    return safetensors(tensors, draw(METADATA))


def headers() -> Cases:
    """Safetensors files, where any file of weights is expected."""
    whole = st.builds(safetensors, TENSORS, METADATA)
    broken = changed(_mosaic()).map(lambda header: with_header(json.dumps(header).encode(), bytes(24)))

    def case(use: tuple[str, ...], content: bytes) -> Case:
        return Case(arguments=use, files={"f.safetensors": content, "picture.png": picture()})

    return st.builds(case, USES_OF_LORA, near()) | st.builds(case, USES, whole | broken | whole.flatmap(bent))


CONFIGS: Mapping[str, tuple[str, ...]] = {
    "unet/config.json": (),
    "vae/config.json": (),
    "text_encoder/config.json": (),
    "scheduler/scheduler_config.json": (),
    "model_index.json": (),
    "words.json": (),
    "tokenizer/tokenizer_config.json": (),
    "adapters/edges/config.json": ("--adapter", "edges=picture.png"),
    "adapters/references/image_encoder/config.json": ("--adapter", "references=picture.png"),
    "adapters/references/image_encoder/preprocessor_config.json": ("--adapter", "references=picture.png"),
}


@st.composite
def configs(draw: st.DrawFn) -> Case:
    """Model folders with a config that was changed."""
    name = draw(st.sampled_from(sorted(CONFIGS)))
    content = json.dumps(draw(changed(embedded_json(name)))).encode()
    if draw(st.integers(0, 9)) == 0:
        content = draw(bent(embedded_text(name).encode()))
    drawn = (*DRAW, "apple", "--model", "model", *CONFIGS[name])
    use = draw(
        st.sampled_from(
            [drawn, drawn, ("inspect", "model"), ("words", "model"), ("convert", "model", "o", "--to", "ldm")]
        )
    )
    return Case(arguments=use, files={"picture.png": picture()}, model={name: content})


REQUEST: Json = {
    "prompt": "apple",
    "negative_prompt": "b",
    "dialect": "a1111",
    "seed": 3,
    "steps": 1,
    "sampler": "euler_a",
    "sampler_options": {"eta": 0.5},
    "guidance_scale": 5.0,
    "guidance_method": "cfg+pag(scale=2)",
    "image": None,
    "strength": 0.8,
    "size": [64, 64],
    "regions": [{"prompt": "b", "box": [0, 0, 0.5, 1], "weight": 1.0}],
    "high_resolution": None,
    "views": None,
    "adapters": [{"source": "mosaic", "scale": 1.0, "blocks": {"down": 1.0}}],
    "embeddings": [],
}
A1111 = (
    "apple <lora:mosaic:1>\nNegative prompt: b\n"
    "Steps: 1, Sampler: Euler a, CFG scale: 5, Seed: 3, Size: 64x64, Model: emoji"
)
GRAPH: Json = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "emoji"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "apple", "clip": ["1", 1]}},
    "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    "4": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 3,
            "steps": 1,
            "cfg": 5,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1,
            "model": ["1", 0],
            "positive": ["2", 0],
            "negative": ["2", 0],
            "latent_image": ["3", 0],
        },
    },
    "5": {"class_type": "SaveImage", "inputs": {"images": ["6", 0]}},
    "6": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
}


@st.composite
def metadata(draw: st.DrawFn) -> Case:
    """Pictures whose descriptions were changed: undertow's, A1111's and ComfyUI's."""
    match draw(st.integers(0, 3)):
        case 0 | 1:
            content = described(
                draw(changed(REQUEST)), **draw(st.fixed_dictionaries({}, optional={"index": JSON, "model": JSON}))
            )
        case 2:
            lines = st.lists(st.sampled_from(A1111.replace(",", "\n").split("\n")) | LETTERS, max_size=9).map(", ".join)
            content = picture(
                {"parameters": draw(lines | bent(A1111.encode()).map(lambda text: text.decode(errors="replace")))}
            )
        case _:
            content = picture({"prompt": json.dumps(draw(changed(GRAPH)))})
    use = draw(
        st.sampled_from(
            [("inspect", "old.png"), (*DRAW, "--from", "old.png"), (*DRAW, "--from", "old.png", "-m", "emoji")]
        )
    )
    return Case(arguments=use, files={"old.png": content})


@st.composite
def prompts(draw: st.DrawFn) -> Case:
    """Prompts in every dialect, files of prompts, and wildcards."""
    dialect = ("--dialect", draw(st.sampled_from(["a1111", "comfy", "compel", "plain"])))
    text = draw(PROMPTS)
    match draw(st.integers(0, 4)):
        case 0:
            lines = "\n".join(draw(st.lists(PROMPTS.map(lambda line: line.replace("\n", " ")), max_size=2)))
            return Case(arguments=(*DRAW, *dialect, "--prompts", "p.txt"), files={"p.txt": lines.encode()})
        case 1:
            files = {"w/a.txt": draw(PROMPTS).encode(), "w/b.txt": b"__a__\n__b__ {c|__a__}"}
            return Case(
                arguments=(*DRAW, *dialect, "--wildcards", "w", "--wildcard-seed", "1", f"__a__ {text}"), files=files
            )
        case 2:
            return Case(arguments=(*DRAW, *dialect, "apple", "--negative", text))
        case _:
            return Case(arguments=(*DRAW, *dialect, "--", text))


def _right(parameter: Any) -> tuple[str, ...] | None:
    """Values that an option may well have; `None` for one that has no value."""
    if parameter.is_flag:
        return None
    kind = parameter.type_descriptor.annotation
    if choices := tuple(kind) if isinstance(kind, EnumType) else typing.get_args(kind):
        return tuple(map(str, choices))
    match kind.__name__:
        case "int":
            return ("1", "2", "3")
        case "float":
            return ("0.5", "1", "2")
        case _:
            return ("1", "mosaic", "euler", "karras", "cpu", "emoji", "64x64", "made.png", "picture.png", "folder")


@cache
def _options() -> Mapping[tuple[str, ...], Mapping[str, tuple[str, ...] | None]]:
    """The options of every verb with values that fit, by what is typed before them."""
    from undertow.cli.app import VERBS

    found: dict[tuple[str, ...], Mapping[str, tuple[str, ...] | None]] = {}

    def add(command: Any, path: tuple[str, ...]) -> None:
        for name, inner in getattr(command, "commands", {}).items():
            add(inner, (*path, name))
        if not getattr(command, "commands", {}):
            typed = [parameter for parameter in command.params if parameter.param_type_name == "option"]
            found[path] = {name: _right(one) for one in typed for name in one.opts if name.startswith("--")}

    for name, verb in VERBS.items():
        app = verb if isinstance(verb, typer.Typer) else typer.Typer(add_completion=False)
        if app is not verb:
            app.command(name)(verb)
        add(typer.main.get_command(app), (name,))
    return found


@st.composite
def options(draw: st.DrawFn) -> Case:
    """Every verb with options that fit, and with values that its options were not made for."""
    verb = draw(st.sampled_from([verb for verb in sorted(_options()) if verb[0] != "serve"]))  # which does not end
    begun = {
        "generate": (*DRAW, "apple"),
        "compare": ("compare", "apple", "--steps", "1"),
        "sample": ("sample", "digits-flow", "--count", "1", "--steps", "1", "--class", "3"),
        "inspect": ("inspect", "sd15"),
        "plan": ("plan", "sd15"),
        "preprocess": (*verb, "picture.png"),
        "convert": ("convert", "emoji", "made", "--to", "ldm"),
        "adapters": (*verb, "mosaic"),
    }
    typed = [*begun.get(verb[0], verb)]
    if verb[0] in ("inspect", "preprocess", "convert", "adapters") and draw(st.integers(0, 3)) == 0:
        typed.append(draw(VALUES))
    lasting = {"--steps", "--count", "--batch-size", "--show", "--help"}
    known = [option for option in _options()[verb] if option not in lasting]
    for option in draw(st.lists(st.sampled_from(known), min_size=1, max_size=3)) if known else ():
        right = _options()[verb][option]
        if draw(st.integers(0, 2)) == 0:
            typed += [option, draw(VALUES)]
        else:
            typed += [option] if right is None else [option, draw(st.sampled_from(right))]
    files = {"picture.png": picture(), "folder/picture.png": picture(), "folder/picture.txt": b"apple"}
    return Case(arguments=tuple(typed), files=files, fifos=("pipe",))


CONFIGURED: Json = {
    "model": "emoji",
    "folders": ["folder"],
    "out": "made",
    "name": "{seed}-{prompt}",
    "models": {"mine": "emoji", "style": "f.safetensors"},
    "limits": {"pixels": 1_000_000, "steps": 10},
    "presets": {"small": {"size": "64x64", "steps": 1, "seed": "7", "lora": ["mosaic@0.5"]}},
}


def toml(content: Any) -> str:
    """Values as TOML has them, which are nearly JSON; objects in a list are inline tables."""
    if isinstance(content, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {toml(value)}" for key, value in content.items()) + "}"
    if isinstance(content, list):
        return "[" + ", ".join(map(toml, content)) + "]"
    return '"none"' if content is None else json.dumps(content).replace("NaN", "nan").replace("Infinity", "inf")


@st.composite
def configured(draw: st.DrawFn) -> Case:
    """An `undertow.toml` of a folder that somebody works in, as it should be or changed."""
    found = draw(st.just(CONFIGURED) | changed(CONFIGURED))
    text = "\n".join(f"{json.dumps(str(key))} = {toml(value)}" for key, value in found.items()).encode()
    content = draw(bent(text)) if draw(st.integers(0, 5)) == 0 else text
    drawing = (*DRAW, "apple")
    uses = [drawing, (*drawing, "--preset", "small"), (*drawing, "-m", "mine"), ("models",), ("plan", "mine")]
    return Case(arguments=draw(st.sampled_from(uses)), files={"undertow.toml": content, "folder/a.txt": b""})


FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")
MODES = ("RGB", "L", "P", "1", "RGBA", "CMYK", "I;16", "F")


@cache
def _picture(kind: str, mode: str) -> bytes | None:
    try:
        return picture(kind=kind, mode=mode)
    except (OSError, ValueError, KeyError):  # a format that has no such pixels
        return None


@st.composite
def pictures(draw: st.DrawFn) -> Case:
    """Picture files of every format that are damaged."""
    whole = _picture(draw(st.sampled_from(FORMATS)), draw(st.sampled_from(MODES))) or picture()
    content = draw(bent(whole) | st.just(whole) | st.binary(max_size=64))
    verb = draw(st.sampled_from(["canny", "depth", "blur", "grid", "line-art", "scribble", "soft-edges", "tile"]))
    use = draw(
        st.sampled_from(
            [
                ("inspect", "picture.png"),
                ("preprocess", verb, "picture.png"),
                (*DRAW, "apple", "--image", "picture.png"),
                (*DRAW, "apple", "--image", "picture.png", "--mask", "picture.png"),
                (*DRAW, "apple", "--adapter", "edges=picture.png"),
                (*DRAW, "apple", "--embedding", "picture.png"),
            ]
        )
    )
    return Case(arguments=use, files={"picture.png": content})


KINDS: Mapping[str, Callable[[], Cases]] = {
    "headers": headers,
    "configs": configs,
    "metadata": metadata,
    "prompts": prompts,
    "options": options,
    "configured": configured,
    "pictures": pictures,
}
