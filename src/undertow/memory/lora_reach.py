"""Which part of a model a LoRA's layer is of, by its name in any of the dialects; decides which copies are kept."""

INSIDE = ("attn", "ff", "proj_in", "proj_out")
"""What the layers of a U-Net's transformers are called."""


def is_of_text(name: str) -> bool:
    """Of a text encoder."""
    return "text" in name or "_te" in name


def is_outside(name: str) -> bool:
    """Of a layer of the U-Net that is in no transformer."""
    return not is_of_text(name) and not any(word in name for word in INSIDE)
