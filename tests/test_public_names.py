"""`import undertow` offers the documented names, and loads torch only when one of them is used."""

import ast
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import undertow
from undertow import errors


@pytest.mark.parametrize("name", undertow.__all__)
def test_each_public_name_resolves(name):
    assert getattr(undertow, name).__name__ == name


def test_all_is_sorted_and_equals_the_public_names():
    assert list(undertow.__all__) == sorted(undertow.__all__)
    assert dir(undertow) == undertow.__all__


def test_the_reference_lists_each_public_name_where_it_is():
    """mkdocs finds a name only in the module that defines it, and says so only when somebody builds the site."""
    page = (Path(__file__).parents[1] / "docs/reference.md").read_text()
    listed = set(re.findall(r"^::: (\S+)$", page, flags=re.MULTILINE))
    public = [getattr(undertow, name) for name in undertow.__all__ if not hasattr(errors, name)]
    assert listed == {f"{one.__module__}.{one.__name__}" for one in public} | {"undertow.errors"}


def test_every_error_type_is_public():
    types = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.UndertowError)
    }
    assert types <= set(undertow.__all__)


def test_type_checkers_and_the_lazy_table_agree():
    """The table must name the module that the `TYPE_CHECKING` import names, or editors and Python would disagree."""
    tree = ast.parse(Path(undertow.__file__).read_text())
    guarded = [node for node in tree.body if isinstance(node, ast.If)]
    told = {
        alias.name: node.module
        for block in guarded
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == undertow._ROOMS


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'UNet3D'"):
        _ = undertow.UNet3D


def test_importing_the_package_imports_no_torch():
    code = "import sys, undertow; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("given", [None, "0"])
def test_large_tensors_lie_in_huge_pages_unless_somebody_decided_otherwise(given):
    code = "import undertow, os; print(os.environ['THP_MEM_ALLOC_ENABLE'])"
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    environment |= {} if given is None else {"THP_MEM_ALLOC_ENABLE": given}
    done = subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == (given or "1")


def test_the_version_is_that_of_the_package():
    assert undertow.__version__ == metadata.version("undertow")
