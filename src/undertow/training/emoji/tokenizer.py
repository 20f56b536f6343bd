"""The model's own tokenizer: CLIP's byte-pair encoding, learned from the captions, so that each word is one token."""

import json
import re
from pathlib import Path

from undertow.errors import MissingDependency
from undertow.training.emoji.names import COLORS, EMOJI
from undertow.training.emoji.scenes import RELATIONS

POSITIONS = 32
"""Tokens of a prompt, with both marks: the longest caption has 18."""

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""Where CLIP divides a text before it looks at pairs (openai/CLIP, simple_tokenizer.py)."""


def known_words() -> tuple[str, ...]:
    """Every word that captions have, sorted."""
    texts = (*EMOJI, *COLORS, *RELATIONS, "on a an background")
    return tuple(sorted({word for text in texts for word in text.split()}))


def save_tokenizer(folder: Path) -> None:
    """Learns the merges and writes what transformers' and diffusers' CLIPTokenizer read. Errors: `MissingDependency`."""
    try:
        from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers  # noqa: PLC0415  an extra
        from transformers import CLIPTokenizer  # noqa: PLC0415  an extra, and slow to import
    except ModuleNotFoundError as err:
        raise MissingDependency("transformers", "text") from err
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=49408,  # more than the words need: merging ends when each of them is one token
        min_frequency=1,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
    )
    tokenizer.train_from_iterator([known_words()], trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    # In CLIP's order: bytes, bytes that end a word, merges, marks.
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), BOS, EOS]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    folder.mkdir(parents=True, exist_ok=True)
    CLIPTokenizer(
        vocab=vocabulary, merges=[tuple(pair) for pair in merges], model_max_length=POSITIONS, pad_token=EOS
    ).save_pretrained(folder)


def unknown_words(prompt: str, known: frozenset[str]) -> list[str]:
    """The words of a prompt that are not known, in their order, each once."""
    return [word for word in dict.fromkeys(re.findall(r"[^\W\d_]+", prompt.lower())) if word not in known]
