"""A tokenizer learned from words: each is one token, everything else still has tokens, transformers reads it."""

import subprocess
import sys

import pytest
from transformers import AutoTokenizer, CLIPTokenizer

from undertow.encoders.learn_tokenizer import learn_tokenizer
from undertow.encoders.tokenizer import FolderTokenizer

WORDS = ("red", "apple", "apples", "on", "background", "jack", "o", "lantern")
POSITIONS = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    learn_tokenizer(WORDS, folder, positions=POSITIONS)
    return folder


def test_each_word_is_one_token_of_its_own(folder):
    tokenizer = FolderTokenizer(folder)
    ids = [tokenizer.encode(word) for word in WORDS]
    assert {len(one) for one in ids} == {1}
    assert len({one[0] for one in ids}) == len(WORDS)
    assert tokenizer.encode("Red APPLE, jack-o-lantern") == tokenizer.encode("red apple , jack - o - lantern")


@pytest.mark.parametrize("text", ["zebra", "ÄpfeL 42", "🍎", "don't", "a" * 40])
def test_any_text_has_tokens_and_comes_back(folder, text):
    tokenizer = FolderTokenizer(folder)
    assert tokenizer.decode(tokenizer.encode(text)).replace(" ", "") == text.lower().replace(" ", "")


def test_transformers_gives_the_same_ids(folder):
    ours = FolderTokenizer(folder)
    text = "red apple on zebra background"
    for kind in (CLIPTokenizer, AutoTokenizer):
        theirs = kind.from_pretrained(folder)
        assert theirs.model_max_length == POSITIONS
        ids = theirs(text, padding="max_length").input_ids
        expected = [ours.bos, *ours.encode(text), ours.eos]
        assert ids == expected + [ours.eos] * (POSITIONS - len(expected))


def test_every_process_learns_the_same(folder, tmp_path):
    code = (
        "import sys; from pathlib import Path; from undertow.encoders.learn_tokenizer import learn_tokenizer; "
        f"learn_tokenizer({WORDS!r}, Path(sys.argv[1]), positions={POSITIONS})"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)
    for file in folder.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name
