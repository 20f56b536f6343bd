"""Which program described a picture, by the names of the texts in its file."""

from collections.abc import Mapping

from undertow.infotext.a1111 import read_a1111
from undertow.infotext.comfy import read_comfy
from undertow.infotext.invoke import read_invoke
from undertow.infotext.reading import Reading

A1111, COMFYUI, INVOKEAI = "parameters", "prompt", "invokeai_metadata"
"""Names of the texts; pictures that ComfyUI's nodes for A1111's text write have both, of which the text is clearer."""

OTHERS = {
    "invokeai_metadata": "InvokeAI",
    "invokeai_graph": "InvokeAI, without its metadata",
    "sd-metadata": "InvokeAI before version 3",
    "fooocus_scheme": "Fooocus",
    "Comment": "NovelAI or another program",
    "generation_data": "TensorArt",
    "workflow": "ComfyUI, without its prompt",
}
"""Texts of programs that are not read, or of which there is too little."""


def read_description_of_others(texts: Mapping[str, str]) -> Reading | None:
    """What another program says of a picture; `None` for pictures without such texts."""
    if A1111 in texts and not texts[A1111].lstrip().startswith("{"):  # Fooocus writes JSON under this name
        return read_a1111(texts[A1111])
    if INVOKEAI in texts:
        return read_invoke(texts[INVOKEAI])
    return read_comfy(texts[COMFYUI]) if COMFYUI in texts else None


def unread_program(texts: Mapping[str, str]) -> str | None:
    """The program whose texts are there and not read, if it is known."""
    return next((program for name, program in OTHERS.items() if name in texts), None)
