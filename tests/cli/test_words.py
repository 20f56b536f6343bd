"""`undertow words`: the list of what a small model draws."""

import pytest

from undertow.cli.app import main


def test_all_that_the_embedded_model_knows(monkeypatch, capsys):
    """106 emoji, 8 backgrounds and 4 relations, as its words.json says; in a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["words"]) == 0
    shown = capsys.readouterr().out
    assert "draws 106:" in shown
    assert "\U0001f34e red apple" in shown
    assert "on the backgrounds white, gray, red, yellow, green, blue, purple, pink" in shown
    joined = " ".join(shown.split())
    assert "two or three with left of, right of, above or below between their names, the same each time" in joined
    assert 'undertow generate "red apple left of green apple on white background"' in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(("word", "names"), [("cat", ["cat face"]), ("aple", ["red apple", "green apple"])])
def test_only_what_is_like_a_word(word, names, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["words", "emoji", "--like", word]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in names)
    assert "owl" not in shown
    assert f"of 106, like '{word}'" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits-flow"], "model is 'digits-flow', expected a model folder with words.json"),
        (["emojii"], "emojii"),
        (["emoji", "--like", "xylophone"], "--like is 'xylophone'"),
    ],
)
def test_what_has_no_words_is_refused(arguments, message, capsys):
    assert main(["words", *arguments]) == 2
    assert message in capsys.readouterr().err
