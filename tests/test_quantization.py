"""Rules of quantization: the last pattern that matches counts, and what is wrong is refused by name."""

import pytest

from undertow.errors import InvalidInput
from undertow.quantization import Quantization, QuantizedWeights, as_quantization, linear_layers

SHAPES = {
    "conv_in.weight": (32, 4, 3, 3),
    "norm.weight": (32,),
    "attn.to_q.weight": (32, 48),
    "attn.to_q.bias": (32,),
    "ff.weight": (64, 24),
    "odd.weight": (20, 24),
    "class_embedding.weight": (10, 32),
}


def test_matrices_that_multiply_are_found():
    assert dict(linear_layers(SHAPES)) == {"attn.to_q": (32, 48), "ff": (64, 24), "odd": (20, 24)}


def test_the_last_pattern_that_matches_counts():
    rules = Quantization(rules=(("*", "int8-weights"), ("unet.attn.*", "int8-dynamic"), ("*.to_v", "none")))
    assert rules.scheme("unet.ff") == "int8-weights"
    assert rules.scheme("unet.attn.to_q") == "int8-dynamic"
    assert rules.scheme("unet.attn.to_v") is None
    assert rules.keeping(["unet.ff"]).scheme("unet.ff") is None
    assert rules.schemes == ("int8-weights", "int8-dynamic")


@pytest.mark.parametrize(
    ("scheme", "layers"),
    [("int8-weights", {"attn.to_q", "ff", "odd"}), ("int8-dynamic", {"attn.to_q", "ff"}), ("float8", {"attn.to_q"})],
)
def test_layers_of_sizes_that_kernels_do_not_take_stay_as_they_are(scheme, layers):
    assert as_quantization(scheme).layers("unet", SHAPES).keys() == layers


def test_bytes_that_are_saved():
    found = QuantizedWeights.of("unet", {"attn.to_q": "int8-weights", "ff": "int8-dynamic"}, SHAPES)
    assert (found.numbers, found.rows, found.schemes) == (32 * 48 + 64 * 24, 96, ("int8-weights", "int8-dynamic"))
    assert found.saved_bytes(2) == found.numbers - 4 * 96


def test_json_gives_back_the_same():
    rules = Quantization(rules=(("*", "int8-weights"), ("vae.*", "none")))
    assert Quantization.from_json(rules.to_json()) == rules
    assert as_quantization({"*": "int8-weights", "vae.*": "none"}) == rules
    assert as_quantization("none") is None


@pytest.mark.parametrize("text", ["", "[]", '{"rules": 3}', '{"rules": [["*"]]}', "[" * 9999])
def test_other_json_is_refused(text):
    with pytest.raises(InvalidInput, match=r"JSON such as"):
        Quantization.from_json(text)


def test_what_is_wrong_is_refused():
    with pytest.raises(InvalidInput, match=r"'int9-weights'.*did you mean 'int8-weights'"):
        as_quantization("int9-weights")
    with pytest.raises(InvalidInput, match=r"at least one pattern"):
        as_quantization({})
    with pytest.raises(InvalidInput, match=r"'foo\*'.*e\.g\. unet\.a, unet\.b; convolutions"):
        Quantization(rules=(("foo*", "none"),)).require_matches(["unet.a", "unet.b"])
