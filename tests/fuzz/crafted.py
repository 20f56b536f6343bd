"""Command lines that once hung, ended in a raw error or took all memory: issue by issue, what they must say now.

Each comes with its crafted files, and is run in the sandbox, so that one that breaks again harms nothing.
"""

import json
import zlib
from typing import Any

from tests.fuzz.files import (
    changed,
    chunk,
    cifar_archive,
    cyclic_pickle,
    described,
    embedded_json,
    lora,
    nested_pickle,
    picture,
    png,
    safetensors,
    stride_zero_pickle,
    with_header,
)
from tests.fuzz.sandbox import Case

DRAW = ("generate", "apple", "--steps", "1", "--no-show")
UNET, VAE, TEXT = "unet/config.json", "vae/config.json", "text_encoder/config.json"
SCHEDULER, EDGES = "scheduler/scheduler_config.json", "adapters/edges/config.json"

BACKTRACKING = {"a?" * 34 + "a" * 34: 2}


def _drawn(*more: str, **files: bytes) -> Case:
    return Case(arguments=(*DRAW, *more), files=_named(files))


def _model(name: str, **fields: Any) -> Case:
    return Case(arguments=(*DRAW, "--model", "model"), model=changed(name, **fields))


def _repeated(content: bytes, *more: str) -> Case:
    return Case(arguments=("generate", "--from", "old.png", "--no-show", *more), files={"old.png": content})


def _named(files: dict[str, bytes]) -> dict[str, bytes]:
    """a__b: a.b"""
    return {name.replace("__", "."): content for name, content in files.items()}


ENTRIES: dict[str, tuple[Case, str]] = {
    # Entry 3 and 4: names and prompts that took time without end.
    "a pattern of PEFT's that backtracks": (
        Case(
            arguments=("inspect", "l.safetensors", "--model", "emoji"),
            files={
                "l.safetensors": lora(
                    {"lora_adapter_metadata": json.dumps({"unet.r": 1, "unet.alpha_pattern": BACKTRACKING})}
                )
            },
        ),
        r"a name pattern that cannot be read: more than 8 wildcards",
    ),
    "spaces": (_drawn("--negative", " " * 32_000), r"32,000 bytes long, expected at most 16,384"),
    "as many chunks as words": (
        Case(arguments=("generate", "--steps", "1", "BREAK " * 2666)),
        r"prompt is 2,666 chunks of \d+ tokens, expected at most 32,768 tokens; shorten it, or set UNDERTOW_MAX_TOKENS",
    ),
    "open calls of compel": (
        Case(arguments=("generate", "--dialect", "compel", "--steps", "1", '("a"' + ".swap(" * 2000)),
        r"prompt",
    ),
    "a picture that names 80,000 LoRAs": (
        Case(
            arguments=("inspect", "old.png"),
            files={"old.png": picture({"parameters": "<lora:a:1> " * 80_000 + "\nSteps: 1"})},
        ),
        r"and 79,\d\d\d more",
    ),
    "a picture of 2,000 regions": (
        _repeated(described({"regions": [{"prompt": "a", "box": [0, 0, 1, 1]}] * 2000})),
        r"regions is 2,000 regions, expected at most 100 regions or adapters; set UNDERTOW_MAX_PARTS higher",
    ),
    # Entry 5: bombs before any check.
    "a picture that is small as a file alone": (
        _drawn("--image", "p.png", p__png=png(12_000, 10_000)),
        r"12000x10000 pixels, expected at most 67,108,864 pixels; make it smaller, or set UNDERTOW_MAX_PIXELS",
    ),
    "a model's own size": (_model(UNET, sample_size=10**9), r"sample_size = 1000000000: must be at most 1,048,576"),
    "ResBlocks of a U-Net": (_model(UNET, layers_per_block=10**6), r"layers = .*UNDERTOW_MAX_LAYERS"),
    "ResBlocks within the limit": (_model(UNET, layers_per_block=100), r"layers = \d+: is more than the \d+ tensors"),
    "transformers of a U-Net": (_model(UNET, transformer_layers_per_block=10**7), r"layers = .*UNDERTOW_MAX_LAYERS"),
    "levels of a U-Net": (
        _model(
            UNET,
            block_out_channels=[32] * 1000,
            attention_head_dim=8,
            transformer_layers_per_block=1,
            down_block_types=["DownBlock2D"] * 1000,
            up_block_types=["UpBlock2D"] * 1000,
        ),
        r"layers = .*UNDERTOW_MAX_LAYERS",
    ),
    "channels of a U-Net": (_model(UNET, block_out_channels=[96, 192 * 10**12]), r"channels = .*UNDERTOW_MAX_WIDTH"),
    "classes of a U-Net": (_model(UNET, num_class_embeds=10**15), r"added.count = .*UNDERTOW_MAX_WIDTH"),
    "ResBlocks of a VAE": (_model(VAE, layers_per_block=10**6), r"layers = .*UNDERTOW_MAX_LAYERS"),
    "channels of a VAE": (_model(VAE, in_channels=10**12), r"in_channels = .*UNDERTOW_MAX_WIDTH"),
    "layers of a text encoder": (_model(TEXT, num_hidden_layers=10**6), r"layers = .*UNDERTOW_MAX_LAYERS"),
    "positions of a text encoder": (_model(TEXT, max_position_embeddings=10**13), r"positions = .*UNDERTOW_MAX_WIDTH"),
    "timesteps": (_model(SCHEDULER, num_train_timesteps=10**9), r"steps = .*UNDERTOW_MAX_TIMESTEPS"),
    "ResBlocks of a ControlNet": (
        Case(
            arguments=(*DRAW, "--model", "model", "--adapter", "edges=p.png"),
            files={"p.png": picture()},
            model=changed(EDGES, layers_per_block=10**6),
        ),
        r"layers = .*UNDERTOW_MAX_LAYERS",
    ),
    "layers of an image encoder": (
        Case(
            arguments=(*DRAW, "--model", "model", "--adapter", "references=p.png"),
            files={"p.png": picture()},
            model=changed("adapters/references/image_encoder/config.json", num_hidden_layers=10**6),
        ),
        r"layers = .*UNDERTOW_MAX_LAYERS",
    ),
    "steps": (
        Case(arguments=("generate", "apple", "--steps", "100000000")),
        r"steps is 100,000,000, expected at most 100,000 steps; set UNDERTOW_MAX_STEPS higher",
    ),
    "steps of class pictures": (
        Case(arguments=("sample", "digits-ddpm", "--steps", "100000000")),
        r"steps is 100,000,000, expected at most 100,000 steps",
    ),
    "pictures": (_drawn("-n", "100000000000"), r"count is 100,000,000,000, expected at most .*UNDERTOW_MAX_COUNT"),
    "a sheet without end": (
        Case(arguments=("compare", "apple", "--steps", "1", "--seeds", ",".join(map(str, range(100_000))))),
        r"cells is 100,000, expected at most 1,000 pictures on one sheet; set UNDERTOW_MAX_CELLS higher",
    ),
    "class pictures": (
        Case(arguments=("sample", "digits-ddpm", "--count", "100000000000")),
        r"count is 100,000,000,000",
    ),
    "a strength of nearly nothing": (
        _drawn("--image", "p.png", "--strength", "1e-9", "--strength-as", "comfy", p__png=picture()),
        r"1e-09 of 1 steps.*at most 100,000 steps of the whole grid",
    ),
    "a tensor that repeats one number": (
        Case(
            arguments=("inspect", "--allow-pickle", "m.ckpt"),
            files={"m.ckpt": stride_zero_pickle(400_000_000)},
        ),
        r"its tensors have more than .* bytes.*UNDERTOW_MAX_PICKLE_RATIO",
    ),
    "dictionaries that hold each other": (
        Case(arguments=("inspect", "--allow-pickle", "m.ckpt"), files={"m.ckpt": nested_pickle(6, 100)}),
        r"more than 50,000 entries",
    ),
    "a dictionary that holds itself": (
        Case(arguments=("inspect", "--allow-pickle", "m.ckpt"), files={"m.ckpt": cyclic_pickle()}),
        r"pickle",
    ),
    "CIFAR-10 of lists that hold each other": (
        Case(
            arguments=("train", "cifar10", "--data", "c.tar.gz"),
            files={"c.tar.gz": cifar_archive(64)},
        ),
        r"data_batch_1 is not a CIFAR-10 batch",
    ),
    "a folder with everything below it": (_drawn("--adapter", "/usr"), r"/usr: a folder without weights"),
    "a config as large as a film": (
        Case(arguments=(*DRAW, "--model", "model"), model={UNET: b" " * (16 * 2**20 + 1)}),
        r"16,777,217 bytes; 16,777,216 are allowed; set UNDERTOW_MAX_JSON_BYTES higher",
    ),
    # Entry 6: formats and bombs of pictures.
    "PostScript in a .png": (_drawn("--image", "p.png", p__png=b"%!PS-Adobe-3.0 EPSF-3.0\n"), r"it is EPS"),
    "a text that unfolds": (
        _repeated(png(8, 8, chunk(b"zTXt", b"undertow\0\0" + zlib.compress(bytes(10**8), 9)))),
        r"old.png",
    ),
    # Entry 9: raw errors that were called bugs.
    "adapters that are a word": (_repeated(described({"adapters": "abc"})), r"abc"),
    "a request that is a list": (_repeated(described([])), r"its request is none"),
    "an index behind the pictures": (_repeated(described(index=5)), r"its description is damaged"),
    "a seed that is no whole number": (_repeated(described({"seed": 1.5})), r"seed is 1.5, expected a"),
    "a scaling factor in words": (_model(VAE, scaling_factor="small"), r"scaling_factor = 'small': must be a number"),
    "a width that is a list": (_model(TEXT, hidden_size=[1]), r"hidden_size = \[1\]: must be a whole number"),
    "a shard whose name has a NUL": (
        Case(
            arguments=(*DRAW, "--model", "model"),
            model={
                "unet/diffusion_pytorch_model.safetensors": None,
                "unet/diffusion_pytorch_model.safetensors.index.json": b'{"weight_map": {"a": "a\\u0000b"}}',
            },
        ),
        r"its index names",
    ),
    "a LoRA's matrix without sides": (
        Case(arguments=(*DRAW, "--lora", "l.safetensors"), files={"l.safetensors": lora(down=[])}),
        r"l.safetensors",
    ),
    "a first convolution of one side": (
        Case(
            arguments=("inspect", "m.safetensors"),
            files={"m.safetensors": safetensors({"conv_in.weight": ("F32", [4]), "conv_out.weight": ("F32", [4])})},
        ),
        r"m.safetensors",
    ),
    "a word with 8,000 plus signs": (
        Case(arguments=("generate", "apple" + "+" * 8000, "--dialect", "compel", "--steps", "1")),
        r"plus|signs|\+",
    ),
    "a level of noise without end": (_drawn("--sigmas", "1e300,0"), r"sigma"),
    "a picture a thousand times as large": (_drawn("--enlarge", "1000"), r"pixels|memory"),
    "a blur wider than every picture": (
        Case(arguments=("preprocess", "canny", "p.png", "--blur", "1e9"), files={"p.png": picture()}),
        r"blur is 1000000000.0, expected 0, or a positive number of pixels, at most 1000",
    ),
    "a line wider than every picture": (
        Case(arguments=("preprocess", "scribble", "p.png", "--width", "100000000"), files={"p.png": picture()}),
        r"width is 100000000, expected at least 1 pixel, at most 1000",
    ),
    "a pipe as a picture": (
        Case(arguments=("generate", "--from", "pipe.png"), fifos=("pipe.png",)),
        r"it is not a regular file",
    ),
    "a pipe as a model": (Case(arguments=(*DRAW, "--model", "pipe"), fifos=("pipe",)), r"pipe"),
    "a pipe as a LoRA": (Case(arguments=(*DRAW, "--lora", "pipe.safetensors"), fifos=("pipe.safetensors",)), r"pipe"),
    "a pipe as prompts": (Case(arguments=("generate", "--prompts", "pipe.txt"), fifos=("pipe.txt",)), r"pipe"),
    "a pipe as a tokenizer's pairs": (
        Case(
            arguments=(*DRAW, "--model", "model"),
            fifos=("model/tokenizer/merges.txt",),
            model={"tokenizer/tokenizer.json": None, "tokenizer/vocab.json": b"{}"},
        ),
        r"not a tokenizer \(merges.txt is no file\)",
    ),
    "a config without end": (
        Case(
            arguments=(*DRAW, "--adapter", "folder=p.png"),
            files={"folder/config.json": b'{"a":' * 50_000, "p.png": picture()},
        ),
        r"folder",
    ),
    "a pipe as settings of a file": (
        Case(arguments=(*DRAW, "--model", "model"), fifos=("model/unet/config.json",), model={UNET: None}),
        r"config.json",
    ),
    "a header that is nothing": (
        Case(arguments=("inspect", "m.safetensors"), files={"m.safetensors": with_header(b'{"a":' * 100_000)}),
        r"not JSON",
    ),
}
"""By what is wrong: the command line and files, and what the answer must match."""

assert embedded_json(UNET)["_class_name"]  # the fields that are changed are those of diffusers
