"""No syntax: what is typed is what is encoded, as in diffusers."""

from undertow.encoders.prompts.tree import ParsedPrompt, Text


def parse(text: str) -> ParsedPrompt:
    """The text itself."""
    return ParsedPrompt(tree=Text(text))
