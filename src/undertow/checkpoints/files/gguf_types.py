"""What weights can be quantized to in a GGUF file, and which tensors of a model are.

Without torch, so that a name is checked at once."""

from collections.abc import Mapping

from undertow.errors import InvalidInput

QUANTIZED = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""Types in blocks of 32 numbers with a scale, as stable-diffusion.cpp names them, from the most bits to the fewest."""

IMPORTANCE = ("iq2_xxs", "iq2_xs", "iq1_s")
"""Types that ggml quantizes to by an importance matrix alone (`ggml_quantize_requires_imatrix`)."""

OTHERS: Mapping[str, str] = {
    **dict.fromkeys(IMPORTANCE, "needs an importance matrix, which undertow does not measure"),
    **dict.fromkeys(
        ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq1_m", "iq2_s", "iq3_xxs", "iq3_s", "iq4_nl", "iq4_xs"),
        "is read and not written: the package gguf has no quantizer for it",
    ),
    **dict.fromkeys(("tq1_0", "tq2_0"), "has three values for a weight, which only a model that was trained so keeps"),
}
"""Types that are read only, in lower case, and why they are not written."""

KEPT = ("time_embed.", "label_emb.", "embedding")
"""Parts of names of matrices that stable-diffusion.cpp does not quantize, of U-Nets and text encoders
(`ModelLoader::tensor_should_be_converted`)."""


def require_quantization(argument: str, name: str | None, to: str) -> None:
    """Whether matrices can be stored in this type, of `QUANTIZED`, in the format `to`. Errors: `InvalidInput` says why
    another one is not written."""
    if name is None:
        return
    if name not in QUANTIZED:
        reason = OTHERS.get(name.lower())
        nearest = next((one for one in QUANTIZED if one[1] == name.lower().lstrip("iqt")[:1]), QUANTIZED[-1])
        remedy = "" if reason is None else f"{name} {reason}; take {nearest}"
        raise InvalidInput(argument, repr(name), f"one of {', '.join(QUANTIZED)}", remedy)
    if to != "gguf":
        raise InvalidInput(argument, repr(name), f"a type that a {to} file or folder can hold", "write GGUF instead")


def is_quantized(name: str, shape: tuple[int, ...], block: int) -> bool:
    """Whether a tensor of this LDM name is stored in blocks of so many numbers: matrices whose rows are whole blocks.

    stable-diffusion.cpp's `convert` leaves convolutions as they are (a row of a 3x3 kernel has three numbers), biases,
    and what `KEPT` names. Unlike there, vectors are never quantized: the program computes with them in float32.
    """
    return len(shape) >= 2 and shape[-1] % block == 0 and not any(part in name for part in KEPT)
