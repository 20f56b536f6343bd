"""`undertow diff` from end to end: what it prints, its exit codes, and a bundle that is replayed."""

import json

from undertow.cli import main

DRAWN = ("--steps", "1", "--guidance", "1", "--no-alone")


def test_a_departure_is_said_written_and_replayed(tmp_path, capsys):
    bundle = tmp_path / "bundle"
    typed = ["diff", "emoji", "emoji", "--lora-b", "mosaic", *DRAWN, "--json", "--bundle", str(bundle)]
    assert main(typed) == 3
    found = json.loads(capsys.readouterr().out)
    first = found["first"]
    assert not found["agree"]
    assert first["module"] == found["top"][0]["module"] or first["error"] <= found["top"][0]["own"]
    assert first["inputs_agreed_within"] == 0
    assert main(["diff", "--replay", str(bundle)]) == 0
    assert capsys.readouterr().out.startswith(f"reproduced: {first['module']} departs by")


def test_without_models_or_with_too_many_it_is_refused(tmp_path, capsys):
    assert main(["diff", "emoji", "emoji", "--tolerance", "nan"]) == 2
    assert "--tolerance is nan, expected a finite number from 0" in capsys.readouterr().err
    assert main(["diff", "emoji"]) == 2
    assert "two models, or one and --against diffusers" in capsys.readouterr().err
    assert main(["diff", "emoji", "emoji", "--against", "diffusers"]) == 2
    assert "two models, or one and --against diffusers" in capsys.readouterr().err
    assert main(["diff", "--replay", str(tmp_path)]) == 2
    assert "no bundle.json in it" in capsys.readouterr().err
