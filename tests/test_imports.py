"""Which way imports go, and who may know of Ray."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ["data", "trainables", "sweeps", "ensemble"]
"""In the order of the data flow: a package imports only itself and those before it."""

KNOWS_RAY = {
    "data/prepare.py",
    "trainables/ray_adapter.py",
    "sweeps/searcher.py",
    "sweeps/tuning.py",
}
"""Preparation, the one adapter of training, how Ray Tune runs trials, and what it asks for the next one."""

MODULES = [path.relative_to(ROOT).as_posix() for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imported(module: str) -> set[str]:
    """Top-level names that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            names.add(str(node.module).partition(".")[0])
    return names


@pytest.mark.parametrize("module", MODULES)
def test_packages_import_leftwards_only(module):
    package = module.partition("/")[0]
    rightwards = PACKAGES[PACKAGES.index(package) + 1 :]
    assert imported(module).isdisjoint(rightwards)


def test_few_files_import_ray():
    assert {module for module in MODULES if "ray" in imported(module)} == KNOWS_RAY


def test_only_select_is_named_after_a_standard_module():
    names = {Path(module).stem for module in MODULES} - {"__init__"}
    assert names & sys.stdlib_module_names == {"select"}
