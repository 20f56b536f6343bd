"""The options of a request are those of the record."""

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import typer
from PIL import Image

from tests.cli.options.checks import leaves
from undertow import GenerationRequest
from undertow.cli import main
from undertow.cli.app import Settings, _build
from undertow.cli.request_options import OPTIONS, PARTS, RequestOption
from undertow.cli.verbs import VERBS
from undertow.records import defaults, descriptions

WITHOUT_OPTION = {
    "prompt",
    "discard_penultimate",
    "paste",
    "original_size",
    "crop",
    "target_size",
}
"""The prompt is an argument; for Python alone are the others."""

TYPED = {one.name: one for one in typer.main.get_command(_build(VERBS, Settings())).commands["generate"].params}


def test_every_field_but_a_few_has_an_option():
    covered = {option.field.partition(".")[0] for option in OPTIONS} | {"variation_seed"}
    assert {field.name for field in fields(GenerationRequest)} - covered == WITHOUT_OPTION


@pytest.mark.parametrize(
    "option",
    [one for one in OPTIONS if "." not in one.field and not one.form and not one.switch],
    ids=lambda one: one.name,
)
def test_an_option_over_a_field_has_its_default_its_type_and_its_words(option: RequestOption):
    shown = TYPED[option.name]
    assert shown.default == defaults(GenerationRequest)[option.field]
    assert shown.help.rstrip(".") in " ".join(descriptions(GenerationRequest)[option.field].split())
    kind, _ = get_args(option.parameter().annotation)
    own = get_type_hints(GenerationRequest)[option.field]
    assert kind == (Path | None if own == Image.Image | None else own)


def test_options_over_parts_have_the_defaults_of_the_parts():
    assert TYPED["enlarge_strength"].default == defaults(PARTS["high_resolution"])["strength"]
    assert TYPED["view_overlap"].show_default == str(defaults(PARTS["views"])["overlap"])


VERBS_TYPED = dict(leaves(typer.main.get_command(_build(VERBS, Settings()))))


@pytest.mark.parametrize("verb", VERBS_TYPED, ids=" ".join)
def test_nothing_is_cut_where_eighty_columns_are_there(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    words = " ".join(shown.split())
    for parameter in VERBS_TYPED[verb].params:
        names = (*parameter.opts, *parameter.secondary_opts) if parameter.param_type_name == "option" else ()
        assert all(re.search(rf"{name}(?![\w-])", words) for name in names)
        said = " ".join((parameter.help or "").replace("`", "'").split())
        assert said in words, "whole sentences"


def test_options_are_grouped_by_what_they_are_about(capsys):
    assert main(["generate", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    groups = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert groups == [
        *("Arguments:", "What to draw:", "How to draw it:", "Image:", "Layout:", "Adapters:"),
        *("Output:", "Model:", "Machine:", "Options:"),
    ]
