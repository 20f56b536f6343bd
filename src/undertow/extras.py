"""Packages that undertow can do without, and what to install where one is missing (`pyproject.toml`, extras)."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec

from undertow.errors import MissingDependency

OF_TRAINING: Mapping[str, str] = {"matplotlib": "matplotlib", "transformers": "transformers"}
"""What every training needs: modules, and the packages that they come with."""


OF_FIGURES: Mapping[str, str] = {"matplotlib": "matplotlib"}
"""What drawings of numbers need."""


@contextmanager
def optional_package(package: str, extra: str | None = None) -> Generator[None]:
    """Stands around the import of an optional package. extra: of undertow's that it comes with, if any.

    Errors: `MissingDependency` where it is not installed, and where it is and cannot be imported.
    """
    try:
        yield
    except ModuleNotFoundError as err:
        raise MissingDependency(package, extra) from err
    except ImportError as err:  # such as one that was built for another NumPy
        raise MissingDependency(package, extra, problem=str(err)) from err


def is_installed(module: str) -> bool:
    """Whether a module could be imported; it is not."""
    return find_spec(module) is not None


def require_packages(extra: str, modules: Mapping[str, str]) -> None:
    """Refuses before long work what would fail in it. modules: like `OF_TRAINING`.

    Errors: `MissingDependency` names the first that is not installed.
    """
    for module, package in modules.items():
        if not is_installed(module):
            raise MissingDependency(package, extra)
