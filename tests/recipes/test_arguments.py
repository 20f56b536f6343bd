"""What scripts of recipes refuse on their command line, before they do anything."""

import sys
from importlib import import_module

import pytest

SCRIPTS = ("adapter_data", "compare_image_encoders", "measure_diffusers")


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("given", ["0", "-2", "many", "1.5"])
def test_a_number_of_threads_that_cannot_be_is_refused_by_name(script, given, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [script, f"--threads={given}"])
    with pytest.raises(SystemExit) as left:
        import_module(f"recipes.emoji.{script}").main()
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert f"argument --threads: is {given!r}, expected a whole number of at least 1" in said
