"""The command line's frame: help, version, exit codes, one sentence per error, and lightness."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from undertow.cli import main
from undertow.cli.verbs import Verb
from undertow.errors import InvalidInput

REFUSAL = "--count is 0, expected at least 1; ask for one image or more"


def refuse() -> None:
    raise InvalidInput("--count", 0, "at least 1", "ask for one image or more")


def read_missing_file() -> None:
    Path("no-such-file.png").read_bytes()


def stumble() -> None:
    raise KeyError("a bug")


def interrupt() -> None:
    raise KeyboardInterrupt


def leave() -> None:
    raise typer.Exit(7)


def greet(name: str, loudly: bool = False) -> None:
    print("HELLO" if loudly else "hello", name)


def group_of_verbs() -> typer.Typer:
    group = typer.Typer()
    group.callback()(lambda: None)
    group.command("greet")(greet)
    return group


VERBS: dict[str, Verb] = {
    "refuse": refuse,
    "read": read_missing_file,
    "stumble": stumble,
    "interrupt": interrupt,
    "leave": leave,
    "greet": greet,
    "group": group_of_verbs(),
}


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_lists_the_global_options(arguments, capsys):
    assert main(arguments) == 0
    assert "--debug" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("undertow 0.1.0 (torch 2.")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["refuse"], 2, f"error: {REFUSAL}\n"),
        (["read"], 2, "error: [Errno 2] No such file or directory: 'no-such-file.png'\n"),
        (
            ["stumble"],
            1,
            "error: unexpected KeyError: 'a bug'; this is a bug, please report it with what "
            "undertow --debug stumble says\n",
        ),
        (["interrupt"], 130, "error: interrupted\n"),
        (["leave"], 7, ""),
        (["nothing"], 2, "error: No such command 'nothing'; try 'undertow --help'\n"),
        (["gret"], 2, "error: No such command 'gret'. Did you mean 'greet'? try 'undertow --help'\n"),
        (["greet"], 2, "error: Missing argument 'name'; try 'undertow greet --help'\n"),
        (["refuse", "--wrong"], 2, "error: No such option: --wrong; try 'undertow refuse --help'\n"),
    ],
)
def test_an_error_is_one_sentence_and_an_exit_code(arguments, code, sentence, capsys):
    assert main(arguments, VERBS) == code
    assert capsys.readouterr() == ("", sentence)


def test_a_group_without_a_verb_is_answered_by_its_help_alone(capsys):
    assert main(["train"]) == 2
    printed = capsys.readouterr()
    assert "controlnet" in printed.out + printed.err
    assert "error:" not in printed.err


def test_debug_adds_the_traceback_and_keeps_the_sentence(capsys):
    assert main(["--debug", "refuse"], VERBS) == 2
    error = capsys.readouterr().err
    assert "Traceback (most recent call last)" in error
    assert "in refuse" in error
    assert error.endswith(f"error: {REFUSAL}\n")


def test_debug_may_stand_behind_the_verb(capsys):
    """Messages advise it, and whoever repeats a command adds it at its end."""
    assert main(["refuse", "--debug"], VERBS) == 2
    error = capsys.readouterr().err
    assert "in refuse" in error
    assert error.endswith(f"error: {REFUSAL}\n")


def test_the_shell_completes_verbs_options_and_models(capsys, monkeypatch):
    """As bash asks: the words so far, and which of them the cursor is in."""
    for words, expected in (
        ("undertow gene", "generate"),
        ("undertow generate --guid", "--guidance-method"),
        ("undertow generate --model em", "emoji"),
    ):
        monkeypatch.setenv("_UNDERTOW_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        with contextlib.suppress(SystemExit):
            main([])
        assert expected in capsys.readouterr().out.split(), words


@pytest.mark.parametrize(
    ("arguments", "greeting"),
    [
        (["greet", "Ada"], "hello Ada\n"),
        (["--debug", "greet", "Ada", "--loudly"], "HELLO Ada\n"),
        (["group", "greet", "Ada"], "hello Ada\n"),
    ],
)
def test_a_verb_runs_with_its_arguments(arguments, greeting, capsys):
    assert main(arguments, VERBS) == 0
    assert capsys.readouterr() == (greeting, "")


def test_help_imports_no_torch():
    """Importing torch takes a second or more, and help should answer at once."""
    code = "import sys; from undertow.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "undertow", "nothing"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: No such command 'nothing'; try 'undertow --help'\n")


def test_another_program_may_have_verbs_and_a_name_of_its_own(capsys):
    assert main(["nothing"], VERBS, program="python -m recipes.emoji", about="All about emoji.") == 2
    assert "try 'python -m recipes.emoji --help'" in capsys.readouterr().err
    assert main(["--help"], VERBS, program="python -m recipes.emoji", about="All about emoji.") == 0
    shown = capsys.readouterr().out
    assert "python -m recipes.emoji [OPTIONS]" in shown
    assert "All about emoji." in shown


@pytest.mark.parametrize(
    ("typed", "ours"),
    [
        ("--num-inference-steps", "--steps"),
        ("--cfg-scale", "--guidance"),
        ("--guidance-scale", "--guidance"),
        ("--negative-prompt", "--negative"),
        ("--width", "--size"),
        ("--scheduler", "--sampler"),
        ("--callback", "--preview"),
        ("--lora-scale", "--lora"),
    ],
)
def test_options_of_other_tools_are_answered_with_ours(typed, ours, capsys):
    assert main(["generate", "red apple", typed, "3"]) == 2
    assert capsys.readouterr().err.startswith(f"error: No such option: {typed}; here it is called {ours}; try")


def test_an_option_that_is_near_is_named(capsys):
    assert main(["generate", "red apple", "--stepps", "3"]) == 2
    assert "--steps" in capsys.readouterr().err


def test_an_interruption_while_the_verbs_are_imported_is_one_line(monkeypatch, capsys):
    class Interrupted:
        @staticmethod
        def find_spec(name, *_):
            if name == "undertow.cli.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "undertow.cli.app")
    monkeypatch.setattr(sys, "meta_path", [Interrupted, *sys.meta_path])
    assert main(["samplers"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"
