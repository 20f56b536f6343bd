import pytest

from tests.encoders.minis import shared_encoder, shared_tokenizer
from undertow.encoders.chunks import Division, describe, divide, tokenize
from undertow.encoders.inversion import Inversions
from undertow.encoders.prompts.tree import Break, Embedding, Fragment, Text

COMMA = 267
ENCODER = shared_encoder("clip_l")


def known(**vectors: int) -> Inversions:
    import torch

    inversions = Inversions({"clip_l": 64}, 75)
    for name, count in vectors.items():
        inversions.add(name, torch.ones(count, 64))
    return inversions


def chunked(*parts, inversions=None, **rules):
    runs, _ = tokenize(parts, ENCODER, known() if inversions is None else inversions)
    chunks, cut = divide(runs, ENCODER, Division(comma=COMMA, **rules))
    return chunks, cut


def lengths(chunks) -> list[int]:
    """Tokens of the text in each chunk."""
    return [sum(token.fragment >= 0 for token in chunk.tokens) for chunk in chunks]


def words(count: int, word: str = "cat") -> Fragment:
    return Fragment(Text(f"{word} " * count))


def test_a_chunk_is_begin_text_end_padding():
    chunks, cut = chunked(words(2))
    assert [token.id for token in chunks[0].tokens] == [49406, 2368, 2368, 49407] + [49407] * 73
    assert cut == []
    (chunk,), _ = divide(
        tokenize([words(2)], shared_encoder("openclip_g"), known())[0], shared_encoder("openclip_g"), Division()
    )
    assert [token.id for token in chunk.tokens] == [49406, 2368, 2368, 49407] + [0] * 73


@pytest.mark.parametrize(
    ("count", "expected"), [(0, [0]), (75, [75]), (76, [75, 1]), (150, [75, 75]), (151, [75, 75, 1])]
)
def test_75_tokens_fit(count, expected):
    chunks, _ = chunked(words(count))
    assert lengths(chunks) == expected
    assert {len(chunk.tokens) for chunk in chunks} == {77}


@pytest.mark.parametrize(("parts", "expected"), [
    ((words(2), Break(), words(3)), [2, 3]),
    ((Break(), words(3)), [0, 3]),
    ((words(2), Break(), Break(), words(3)), [2, 0, 3]),
    ((words(2), Break()), [2]),
    ((Break(),), [0]),
    ((words(75), Break(), words(1)), [75, 1]),
])  # fmt: skip
def test_break_starts_a_chunk(parts, expected):
    assert lengths(chunked(*parts)[0]) == expected


@pytest.mark.parametrize(("before", "after", "expected"), [
    (60, 30, [61, 30]),  # the comma is 14 from the end: what follows it moves
    (55, 30, [56, 30]),  # 19
    (54, 30, [75, 10]),  # 20 tokens would move, and the comma makes 21
    (74, 10, [75, 10]),  # the comma is the last that fits
    (75, 10, [75, 11]),  # the comma itself does not fit
])  # fmt: skip
def test_a1111_moves_what_follows_a_late_comma(before, after, expected):
    chunks, _ = chunked(words(before), Fragment(Text(",")), words(after), comma_backtrack=20)
    assert lengths(chunks) == expected


def test_without_backtracking_commas_are_words():
    assert lengths(chunked(words(60), Fragment(Text(",")), words(30))[0]) == [75, 16]


@pytest.mark.parametrize(("count", "expected"), [(7, [70, 7]), (8, [75, 3])])
def test_comfy_keeps_short_texts_together(count, expected):
    assert lengths(chunked(words(70), words(count, "dog"), keep_together=8)[0]) == expected


def test_an_embedding_is_never_divided():
    inversions = known(style=6)
    chunks, _ = chunked(words(70), Fragment(Text("style")), inversions=inversions)
    assert lengths(chunks) == [70, 6]
    assert [token.vector for token in chunks[1].tokens[1:8]] == [("style", row) for row in range(6)] + [None]


@pytest.mark.parametrize(("count", "expected"), [(7, [70, 7]), (8, [75, 3])])
def test_comfy_divides_embeddings_like_texts(count, expected):
    """max_word_length of ComfyUI's sd1_clip.py: what has 8 tokens or more is broken in two where a chunk ends."""
    style = Fragment(Embedding("style"))
    chunks, _ = chunked(words(70), style, inversions=known(style=count), keep_together=8, divide_embeddings=True)
    assert lengths(chunks) == expected


def test_weights_and_origins_go_with_the_tokens():
    (chunk,), _ = chunked(Fragment(Text("a cat"), 1.3), Fragment(Text("sat"), 0.5))
    assert [token.weight for token in chunk.tokens[:6]] == [1.0, 1.3, 1.3, 0.5, 1.0, 1.0]
    assert [token.fragment for token in chunk.tokens[:6]] == [-1, 0, 0, 1, -1, -1]


def test_what_is_cut_is_said():
    chunks, cut = chunked(
        words(75), Fragment(Text("a Dog, running in style!")), inversions=known(style=3), truncate=True
    )
    assert lengths(chunks) == [75]
    assert describe(cut, ENCODER) == "a dog , running in style !"


def test_names_are_found_where_they_stand_alone_in_any_case():
    inversions = known(cat=2, **{"cat-toy": 1, "<cat-toy>": 3})
    assert inversions.split("Cat, <cat-toy>: a CAT-TOY for concatenating cats") == [
        Embedding("cat"),
        Text(", "),
        Embedding("<cat-toy>"),
        Text(": a "),
        Embedding("cat-toy"),
        Text(" for concatenating cats"),
    ]


def test_an_unknown_embedding_is_left_out_and_noted():
    runs, notes = tokenize([Fragment(Embedding("nobody")), words(1)], ENCODER, known(style=1))
    assert len(runs) == 1
    assert notes == ["embedding 'nobody' is not known and was left out"]
    assert len(tokenize([Fragment(Embedding("Style.safetensors"))], ENCODER, known(style=1))[0]) == 1


def test_an_end_mark_in_the_text_is_one():
    assert shared_tokenizer().encode("a<|endoftext|>") == [320, 49407]
