import json
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.encoders.official import merges, reference_tokenizer, vocabulary
from undertow.encoders.clip_config import CLIP_VOCABULARY
from undertow.encoders.tokenizer import FolderTokenizer, OfficialTokenizer, Tokenizer
from undertow.errors import CorruptFile, MissingDependency, UnknownCheckpoint

OFFICIAL = OfficialTokenizer()
REFERENCE = reference_tokenizer()

UNUSUAL = [
    "",
    " \t\n ",
    "A CUTE   cat\n\t!",
    "café",
    "cafe\u0301 na\u0308i\u0308ve",  # accents as characters of their own: NFC joins them
    "ΟΔΥΣΣΕΥΣ ΣΑΣ",  # a word's last sigma
    "İstanbul straße ẞ Ǆ ŉ ﬁ",
    "\u212b \u2126 \u212a",  # letters that NFC replaces
    "😀 👩‍👩‍👧‍👦 🇫🇷 \U0001f3fd",
    "&amp; &lt;b&gt; &#39; &amp;amp;",  # no entity is read, as in transformers
    "it's we've I'LL don't 'S ''s don’t",
    "a\x00b\x01c \x7f \x1c\x1d\x1e\x1f \x0b\x0c \x85",
    "\u200bzero\u200bwidth \ufeffbom \u00a0 \u3000 \u2028 \u2029 \u202f",
    "日本語のテキスト 中文,测试。 한국어 คำ привет МИР",
    "123 4567 ½ ²³ Ⅷ १२३ ٣",
    "a_b-c--d...!!! ~`^\\| ! !",
    "𝕳𝖊𝖑𝖑𝖔 ᵃᵇ ʼn \ue000 \U0010ffff",
    "x" * 300,
    "word " * 200,
    "hi<|endoftext|>there <|startoftext|> <|ENDOFTEXT|>",
]


def reference_ids(text: str) -> list[int]:
    return REFERENCE(text)["input_ids"][1:-1]


def test_golden_ids():
    """R158: the ids of the official vocabulary, and its marks."""
    assert OFFICIAL.encode("a cute cat") == [320, 2242, 2368]
    assert (OFFICIAL.bos, OFFICIAL.eos) == (49406, 49407)
    assert vocabulary()["a</w>"] == 320
    assert vocabulary()["cute</w>"] == 2242
    assert vocabulary()["cat</w>"] == 2368
    assert len(vocabulary()) == CLIP_VOCABULARY


@pytest.mark.parametrize("text", UNUSUAL, ids=lambda text: ascii(text[:20]))
def test_unusual_text_gets_the_ids_of_transformers(text):
    assert OFFICIAL.encode(text) == reference_ids(text)


# Letters newer than Unicode 13 are left out: libraries lower them by the tables of their time.
LETTERS = st.characters(min_codepoint=0, max_codepoint=0x7FF, exclude_categories=["Cs", "Cn"])


@settings(max_examples=300, deadline=None)
@given(st.text(st.one_of(LETTERS, st.sampled_from("abc 's'll<|>,.!\n"))))
@example("a\u0300\u0301")
def test_any_text_gets_the_ids_of_transformers(text):
    assert OFFICIAL.encode(text) == reference_ids(text)


def test_the_same_text_gives_the_same_ids_twice_and_from_another_instance():
    """R159, R194: nothing is remembered, nothing is random."""
    first = [OFFICIAL.encode(text) for text in UNUSUAL]
    assert [OFFICIAL.encode(text) for text in reversed(UNUSUAL)] == first[::-1]
    assert [OfficialTokenizer().encode(text) for text in UNUSUAL] == first


def test_decoding_says_the_words():
    assert OFFICIAL.decode(OFFICIAL.encode("A cute Cat, running!")) == "a cute cat , running !"
    assert OFFICIAL.decode([]) == ""


def test_where_the_package_is_not_there_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "instant_clip_tokenizer", None)
    with pytest.raises(MissingDependency, match="pip install instant-clip-tokenizer"):
        OfficialTokenizer()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder that transformers writes, with SDXL's padding for its second encoder."""
    folder = tmp_path_factory.mktemp("tokenizer_2")
    reference_tokenizer(pad_token="!").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def legacy(tmp_path_factory):
    """The files of published checkpoints."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.json").write_text(json.dumps(vocabulary()))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges()))
    marks = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    config = {**marks, "unk_token": "<|endoftext|>", "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("form", ["saved", "legacy"])
def test_a_folder_gives_the_official_ids(form, request):
    tokenizer = FolderTokenizer(request.getfixturevalue(form))
    assert isinstance(tokenizer, Tokenizer)
    assert (tokenizer.bos, tokenizer.eos) == (49406, 49407)
    for text in UNUSUAL:
        assert tokenizer.encode(text) == OFFICIAL.encode(text), ascii(text)
    assert tokenizer.decode(OFFICIAL.encode("a cute cat")) == "a cute cat"


def test_an_exclamation_mark_is_a_word_though_it_pads(saved, legacy):
    """diffusers issue 4153: with `!` as padding, transformers turns it into padding in prompts as well."""
    tokenizer = FolderTokenizer(saved)
    assert tokenizer.pad == 0
    assert FolderTokenizer(legacy).pad == 49407
    assert tokenizer.encode("hi!") == OFFICIAL.encode("hi!") == [1883, 256]
    padded = reference_tokenizer(pad_token="!")
    assert padded("hi!")["input_ids"][1:-1] == [1883, 0]


def test_added_words_have_ids_of_their_own(tmp_path):
    """As diffusers' textual inversion training saves them, in both forms of a folder."""
    with_words = reference_tokenizer()
    assert with_words.add_tokens(["<cat-toy>", "sks"]) == 2
    with_words.save_pretrained(tmp_path)
    text = "a <cat-toy> and sks"
    expected = with_words(text)["input_ids"][1:-1]
    assert 49408 in expected
    assert FolderTokenizer(tmp_path).encode(text) == expected
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary()))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges()))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"sks": 49409, "<cat-toy>": 49408}))
    assert FolderTokenizer(tmp_path).encode(text) == expected


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(UnknownCheckpoint, match=r"merges\.txt"):
        FolderTokenizer(tmp_path)


def test_a_damaged_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{not json")
    with pytest.raises(CorruptFile):
        FolderTokenizer(tmp_path)
