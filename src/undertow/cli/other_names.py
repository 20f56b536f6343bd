"""Options that other tools have under other names: answered with ours."""

from collections.abc import Collection

from undertow.cli.request_options import OPTIONS
from undertow.doors import ELSEWHERE

FLAGS = {
    **{option.field: option.flag or f"--{option.name.replace('_', '-')}" for option in OPTIONS},
    "adapters": "--lora",
    "scale": "--lora",
    "observe": "--preview",
}
"""By a field of a request or a parameter in Python, the option that sets it."""


def called_here(typed: str, options: Collection[str]) -> str | None:
    """The option among `options` that does what one of this name does elsewhere, or in Python."""
    name = typed.lstrip("-").replace("-", "_")
    ours = FLAGS.get(name) or FLAGS.get(ELSEWHERE.get(name, ""))
    return ours if ours in options and ours != typed else None


VALUES = {
    **dict.fromkeys(("fp16", "float16", "half", "torch.float16"), "f16"),
    **dict.fromkeys(("fp32", "float32", "float", "full", "torch.float32"), "f32"),
    **dict.fromkeys(("bfloat16", "torch.bfloat16"), "bf16"),
    **dict.fromkeys(("single", "file", "safetensors", "ckpt", "checkpoint", "compvis", "original"), "ldm"),
    **dict.fromkeys(("folder", "pipeline", "hf"), "diffusers"),
}
"""What elsewhere is typed for a value of an option, and ours."""


def value_called_here(typed: str, choices: Collection[str]) -> str | None:
    """The one of `choices` that is called so elsewhere."""
    ours = VALUES.get(typed.lower())
    return ours if ours in choices else None
