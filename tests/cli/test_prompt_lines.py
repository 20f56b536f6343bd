"""Prompts from a file: lines with options of their own, JSON, seeds, and choices made for each picture."""

import json
import re
from pathlib import Path

import pytest

from tests.services import service_of
from undertow.cli.app import main
from undertow.cli.prompt_lines import tasks_of_file
from undertow.engine.metadata import read_description
from undertow.errors import InvalidInput

DRAW = ("--model", "m", "--steps", "1", "--size", "64x64", "--guidance", "1", "--no-show")


@pytest.fixture
def lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("undertow.cli.prompt_lines.random_seed", lambda: 100)
    Path("m").touch()

    def write(*texts: str) -> Path:
        path = tmp_path / "prompts.txt"
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture
def loaded(monkeypatch):
    """A tiny service in place of the model."""
    service = service_of("sd1")
    monkeypatch.setattr("undertow.loading.load", lambda *_, **__: service)


def requests(path, **options):
    return [task.request for task in tasks_of_file(path, options)]


def test_lines_have_options_of_their_own(lines):
    path = lines(
        "\ufeffred apple",
        "# a comment",
        "",
        "a [cat|dog] | --steps 7 --negative 'dark, blue' -n 2",
        "{a|b} with a | bar",
        '{"prompt": "rocket", "steps": 9, "seed": 5, "size": [32, 48]}',
        "owl|--seed 8",
    )
    found = requests(path, steps=3, sampler="euler")
    assert [one.prompt for one in found] == ["red apple", "a [cat|dog]", "{a|b} with a | bar", "rocket", "owl"]
    assert [one.steps for one in found] == [3, 7, 3, 9, 3]
    assert [one.count for one in found] == [1, 2, 1, 1, 1]
    assert {one.sampler for one in found} == {"euler"}
    assert found[1].negative_prompt == "dark, blue"
    assert found[3].size == (32, 48)


def test_seeds_follow_one_another_unless_they_are_given(lines):
    path = lines("a", "b | --count 2", "c", "d | --seed 8", "e")
    assert [one.seed for one in requests(path)] == [100, 101, 103, 8, 105]
    assert [one.seed for one in requests(path, seed="7")] == [7, 7, 7, 8, 7]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a | --stps 3", "line 2: what follows | is '--stps 3', expected options of a request (No such option: --stps"),
        ("a | --steps 0", "line 2: steps is 0"),
        ("a | --negative 'x", "options with quotes in pairs"),
        ('{"prompt": "a", "stps": 3}', "line 2: stps is 3"),
        ('{"steps": 3}', "line 2: prompt is None"),
        ('{"prompt": "a"', "one whole object on the line"),
        ('{"prompt": "a", "steps": "x"}', "line 2: steps is"),
    ],
)
def test_a_mistake_is_named_with_its_line(lines, line, message):
    with pytest.raises(InvalidInput, match=re.escape(message)):
        tasks_of_file(lines("fine", line), {})


def test_files_without_prompts_are_refused(lines, tmp_path):
    with pytest.raises(InvalidInput, match="it has none"):
        tasks_of_file(lines("# only this", " "), {})
    with pytest.raises(InvalidInput, match="there is no such file"):
        tasks_of_file(tmp_path / "none.txt", {})
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="UTF-8 text"):
        tasks_of_file(tmp_path / "bytes.txt", {})


def test_each_line_is_drawn_and_repeatable(lines, loaded, monkeypatch, capsys):
    """More pictures than are drawn together, of unlike requests."""
    monkeypatch.setattr("undertow.cli.many.TOGETHER", 3)
    path = lines("red <lora:x:1>", "blue <lora:x:1> | -n 2", "green | --seed 7", "gray | --seed 7")
    assert main(["generate", "--prompts", str(path), *DRAW]) == 0
    printed = capsys.readouterr()
    assert printed.out.split() == [f"out/{name}.png" for name in ("100", "101", "102", "7", "7-2")]
    assert printed.err.count("taken out of the prompt") == 1, "what is said once is not said again"
    stored = [read_description(name) for name in printed.out.split()]
    assert [(one.request.prompt, one.request.seeds[one.index]) for one in stored] == [
        ("red <lora:x:1>", 100),
        ("blue <lora:x:1>", 101),
        ("blue <lora:x:1>", 102),
        ("green", 7),
        ("gray", 7),
    ]


def test_choices_are_made_for_each_picture_and_stored(loaded, lines, tmp_path, capsys):
    (tmp_path / "color.txt").write_text("red\ngreen\nblue\n")
    draw = ["generate", "a __color__ {cat|dog}", *DRAW, "--seed", "5", "-n", "4", "--wildcards", str(tmp_path)]
    assert main([*draw, "--wildcard-seed", "3", "--out", "one"]) == 0
    assert main([*draw, "--wildcard-seed", "3", "--out", "two"]) == 0
    names = capsys.readouterr().out.split()
    one, two = ([read_description(name).request.prompt for name in names[start : start + 4]] for start in (0, 4))
    assert one == two
    assert len(set(one)) > 1
    assert all(re.fullmatch("a (red|green|blue) (cat|dog)", prompt) for prompt in one)
    assert [Path(name).stem for name in names[:4]] == ["5", "6", "7", "8"]


def test_choices_that_are_not_asked_for_are_text_and_told(loaded, lines, capsys):
    assert main(["generate", "a {cat|dog}", *DRAW, "--out", "a.png"]) == 0
    assert "{...|...} and __name__ are text; --wildcards FOLDER or --wildcard-seed random" in capsys.readouterr().err
    assert read_description("a.png").request.prompt == "a {cat|dog}"


@pytest.mark.parametrize("other", [["a prompt"], ["--from", "a.png"]])
def test_one_source_of_prompts(lines, other, capsys):
    assert main(["generate", "--prompts", str(lines("a")), *other]) == 2
    assert "one of the two" in capsys.readouterr().err


def test_json_lines_are_those_of_a_stored_request(lines):
    written = requests(lines("a | --steps 7 --seed 3"))[0]
    fields = {name: value for name, value in written.to_json().items() if name in ("prompt", "steps", "seed")}
    assert requests(lines(json.dumps(fields))) == [written]
