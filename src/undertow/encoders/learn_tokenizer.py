"""A tokenizer for a small model: CLIP's byte-pair encoding, learned from words so that each of them is one token."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from undertow.encoders.clip_config import CLIP_VOCABULARY
from undertow.extras import optional_package

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""Where CLIP divides a text before it looks at pairs (openai/CLIP, simple_tokenizer.py)."""


def learn_tokenizer(words: Iterable[str], folder: Path, *, positions: int) -> None:
    """Learns the merges and writes what transformers' and diffusers' CLIPTokenizer read.

    positions: of the text encoder, both marks included. Errors: `MissingDependency` without transformers.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers  # noqa: PLC0415  slow to import

    with optional_package("transformers", "train"):
        from transformers import CLIPTokenizer  # noqa: PLC0415  an extra, and slow to import

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet = [*letters, *(f"{letter}</w>" for letter in letters)]
    trainer = trainers.BpeTrainer(
        vocab_size=CLIP_VOCABULARY,  # more than the words need: merging ends when each of them is one token
        min_frequency=1,
        show_progress=False,
        # As special tokens they get ids in this order, by which pairs of one frequency are ordered; the order in which
        # the trainer would find them is another one in each process.
        special_tokens=alphabet,
        end_of_word_suffix="</w>",
    )
    tokenizer.train_from_iterator([list(words)], trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    # In CLIP's order: bytes, bytes that end a word, merges, marks.
    tokens = [*alphabet, *("".join(pair) for pair in merges), BOS, EOS]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    folder.mkdir(parents=True, exist_ok=True)
    pairs: Any = [tuple(pair) for pair in merges]  # annotated as texts, used as pairs
    CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=positions, pad_token=EOS).save_pretrained(folder)
