"""Packages that are extras: imported behind one door, which says what to install."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch
from torch import nn

from undertow.cli import main
from undertow.cli.serve import NEEDED
from undertow.errors import MissingDependency
from undertow.extras import OF_TRAINING, optional_package
from undertow.training.fit import FitSettings, fit

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DISTRIBUTIONS = {name: found[0].lower().replace("_", "-") for name, found in packages_distributions().items()}
DISTRIBUTIONS |= {
    "xformers": "xformers",
    "ray": "ray",
    "pydantic_core": "pydantic",
    "opentelemetry": "opentelemetry-sdk",
}
"""By module. xformers and ray are not installed here, pydantic brings its core, several packages share
opentelemetry."""

OURS = {"undertow", *sys.stdlib_module_names}
IMPORT = re.compile(r"^\s*(?:import|from) (\w+)", re.MULTILINE)


def named(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w.-]", requirement)[0].lower() for requirement in requirements}


REQUIRED = named(PROJECT["dependencies"])
THEIRS = {"starlette", "anyio", "mcp-types"}
"""What FastAPI and mcp are made of."""
SERVING = ROOT / "src" / "undertow" / "serving"
EXTRAS = {extra: named(requirements) for extra, requirements in PROJECT["optional-dependencies"].items()}


def imports(
    tree: ast.AST, guards: tuple[tuple[str, ...], ...] = ()
) -> Iterator[tuple[str, tuple[tuple[str, ...], ...]]]:
    """The modules that a syntax tree imports, each with the arguments of `optional_package` around it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        around = guards
        if isinstance(node, ast.With):
            calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
            around += tuple(
                tuple(ast.unparse(argument).strip("'") for argument in call.args)
                for call in calls
                if ast.unparse(call.func) == "optional_package"
            )
        if isinstance(node, ast.Import):
            yield from ((alias.name, around) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module), around
        yield from imports(node, around)


def test_every_import_is_of_a_requirement_or_says_which_extra_it_is_of():
    """Held against pyproject.toml: whoever only draws installs no more than `dependencies`."""
    guarded: set[str] = set()
    for path in sorted((ROOT / "src").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "optional_package" not in text and all(
            name in OURS or DISTRIBUTIONS.get(name) in REQUIRED for name in IMPORT.findall(text)
        ):
            continue
        for module, guards in imports(ast.parse(text)):
            top = module.partition(".")[0]
            if top in OURS or (DISTRIBUTIONS[top] in REQUIRED and not guards):
                continue
            distribution = DISTRIBUTIONS[top]
            if SERVING in path.parents and distribution in EXTRAS["serve"] | EXTRAS["telemetry"] | THEIRS:
                continue  # `undertow serve` asks for all that it is to use before it imports one
            assert guards, f"{path}: {module} is of {distribution}, which is no requirement"
            package, *extra = guards[-1]
            if package == "PACKAGE":  # of cli/show.py
                package = "textual-image"
            assert package == distribution, f"{path}: {module}"
            assert distribution in (EXTRAS[extra[0]] if extra else REQUIRED), f"{path}: {module} and {extra}"
            guarded.add(distribution)
    expected = {"accelerate", "instant-clip-tokenizer", "matplotlib", "opencv-python-headless", "scikit-learn"}
    assert guarded == expected | {
        "diffusers",
        "gguf",
        "prometheus-client",
        "ray",
        "textual-image",
        "transformers",
    }


def test_the_service_asks_for_all_that_it_needs_before_it_begins():
    """Held against pyproject.toml."""
    assert set(NEEDED.values()) == EXTRAS["serve"]


def test_what_is_installed_and_cannot_be_imported_is_not_called_missing():
    """As OpenCV 4.10.0.82, which was built for NumPy 1: to install it once more changes nothing."""
    wanted = r"'opencv' is installed and cannot be imported \(numpy changed\): pip install -U opencv"
    with pytest.raises(MissingDependency, match=wanted), optional_package("opencv", "hints"):
        raise ImportError("numpy changed")


@pytest.mark.parametrize("module", OF_TRAINING)
def test_a_training_that_could_not_be_finished_is_not_begun(module, tmp_path, monkeypatch, capsys):
    """Without matplotlib a run ended at its first checkpoint, after hundreds of steps."""
    monkeypatch.setitem(sys.modules, module, None)
    wanted = f"this needs the package {module!r}: pip install 'undertow[train]'"
    settings = FitSettings(steps=1, batch_size=1, learning_rate=0.1)
    with pytest.raises(MissingDependency, match=re.escape(wanted)):
        fit(nn.Linear(1, 1), lambda step: pytest.fail("begun"), torch.sum, settings, tmp_path / "run", recipe={})
    for command in (["lora", "--images", str(tmp_path)], ["digits"]):
        assert main(["train", *command, "--out", str(tmp_path / "run")]) == 2
        assert wanted in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_terminal_gets_pictures_where_the_package_is_there(monkeypatch, capsys, tmp_path):
    """Asked for, they are refused before anything is loaded; unasked, one line says how to get them."""
    monkeypatch.setitem(sys.modules, "textual_image", None)
    out = tmp_path / "owl.png"
    assert main(["generate", "owl", "--show", "--out", str(out)]) == 2
    assert "this needs the package 'textual-image': pip install 'undertow[terminal]'" in capsys.readouterr().err
    monkeypatch.setattr("undertow.cli.show.can_show", lambda: True)
    assert main(["generate", "owl", "--steps", "1", "--out", str(out)]) == 0
    assert "try: pip install 'undertow[terminal]'" in capsys.readouterr().err
