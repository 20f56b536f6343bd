"""Text encoders: tokenizer, CLIP, prompt dialects, and the stack that turns a prompt into conditioning.

Start at `text_stack`. transformers is imported when an encoder is built, not before.
"""

from undertow.encoders.clip import OutputSelection, TextEncoder
from undertow.encoders.clip_config import PUBLISHED, ClipTextConfig, config_from_transformers
from undertow.encoders.emphasis import EMPHASIS
from undertow.encoders.encoding import EncoderReport, TextEncoding, TextReport, WeightedEncoding
from undertow.encoders.prompts import DIALECTS, ParsedPrompt, composed, parse_prompt, resolve, varies
from undertow.encoders.text_stack import OUTPUT_SELECTIONS, TextStack
from undertow.encoders.tokenizer import FolderTokenizer, OfficialTokenizer, Tokenizer

__all__ = [
    "DIALECTS",
    "EMPHASIS",
    "OUTPUT_SELECTIONS",
    "PUBLISHED",
    "ClipTextConfig",
    "EncoderReport",
    "FolderTokenizer",
    "OfficialTokenizer",
    "OutputSelection",
    "ParsedPrompt",
    "TextEncoder",
    "TextEncoding",
    "TextReport",
    "TextStack",
    "Tokenizer",
    "WeightedEncoding",
    "composed",
    "config_from_transformers",
    "parse_prompt",
    "resolve",
    "varies",
]
