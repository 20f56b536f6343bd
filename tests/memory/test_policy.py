"""Which layers run in which precision and residency (source document 000, 6.4; R69)."""

import pytest

from undertow.errors import InvalidInput
from undertow.memory.families import family
from undertow.memory.plan import plan
from undertow.memory.policy import choose_policy, layer_rules
from undertow.memory.work import Work

SD1, WORK = family("sd15"), Work(size=(512, 512), pictures=1)


def test_much_memory_is_float32_less_is_what_was_asked_for_and_little_gives_way():
    whole = plan(SD1, WORK).process_bytes
    half = plan(SD1, Work(size=(512, 512), dtype="float16")).process_bytes
    assert half < whole
    types = ("float32", "float16")
    high = choose_policy(SD1, WORK, whole, dtypes=types)
    medium = choose_policy(SD1, WORK, whole - 1, dtypes=types)
    low = choose_policy(SD1, WORK, half - 1, dtypes=types)
    assert [(one.level, one.plan.work.dtype, bool(one.plan.measures)) for one in (high, medium, low)] == [
        ("high", "float32", False),
        ("medium", "float16", False),
        ("low", "float16", True),
    ]
    kept = choose_policy(SD1, WORK, whole - 1)
    assert (kept.level, kept.plan.work.dtype) == ("low", "float32"), "another type changes the picture: by name only"


def test_every_layer_has_a_rule():
    work = Work(dtype="float16", vae_dtype="float32", feed_forward_chunks=4, rows=1, keep=(), decode_bytes=2**26)
    rules = {(rule.network, rule.layers): rule for rule in layer_rules(SD1, work)}
    norms, feed_forward = rules["U-Net", "norms"], rules["U-Net", "feed-forward"]
    assert (norms.weights, norms.computes) == ("float16", "float32"), "statistics are never in half precision"
    assert feed_forward.parts == "at most 1 row, 4 parts of the tokens"
    assert feed_forward.residency == "while pictures are drawn"
    assert norms.weights_bytes == 2 * 859_520_964, "the published number of SD1's U-Net"
    vae = rules["VAE", "convolutions, attention"]
    assert (vae.weights, vae.parts) == ("float32", "exact tiles within 67 MB")
    assert rules["text encoders", "all"].residency == "while prompts are read"
    offloaded = {rule.residency for rule in layer_rules(SD1, Work(offloaded_layers=True)) if rule.network == "U-Net"}
    assert offloaded == {"layer by layer"}


def test_unknown_types_are_refused():
    with pytest.raises(InvalidInput, match="dtypes is 'int4', expected of float32"):
        choose_policy(SD1, WORK, 10**9, dtypes=("int4",))
