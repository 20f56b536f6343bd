"""What people write in a prompt: four dialects, each parsed by its own file to the one syntax tree of `tree`."""

from undertow.encoders.prompts.catalogue import DIALECTS, Dialect, parse_prompt
from undertow.encoders.prompts.resolve import composed, resolve, varies
from undertow.encoders.prompts.tree import ParsedPrompt, Tag

__all__ = ["DIALECTS", "Dialect", "ParsedPrompt", "Tag", "composed", "parse_prompt", "resolve", "varies"]
