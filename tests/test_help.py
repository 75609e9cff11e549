"""The help of every command: its size, its examples, and the page that it names."""

import importlib
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "data.prepare": ["verify", "describe", "exclude", "duplicates", "upload"],
    "data.paraphrase": ["import", "review"],
    "trainables.pretrain": [],
    "trainables.embed": [],
    "sweeps.grid": ["retrain", "status"],
    "ensemble.select": ["evaluate", "export"],
    "ensemble.report": [],
    "ensemble.search": [],
    "ensemble.export": [],
    "ensemble.submission": ["validate"],
}
CASES = [f"{module} {name}".strip() for module, names in COMMANDS.items() for name in ["", *names]]


@pytest.mark.parametrize("case", CASES)
def test_help_fits_a_screen_and_shows_two_examples_and_a_page(case, capsys, monkeypatch):
    module, *words = case.split()
    monkeypatch.setenv("COLUMNS", "100")
    assert importlib.import_module(module).main([*words, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 100

    text = "\n".join(lines).replace("\\\n", " ")
    script = f"{module.replace('.', '/')}.py"
    examples = [shlex.split(line) for line in text.splitlines() if line.startswith("    python ")]
    assert len(examples) == 2
    assert all(example[1] == script for example in examples)
    if words:
        assert all(words[0] in example for example in examples)

    [page] = [line.removeprefix("Guide: ") for line in lines if line.startswith("Guide: ")]
    assert (ROOT / page).is_file()


def test_every_command_of_the_tree_is_checked():
    scripts = [
        path for package in ("data", "trainables", "sweeps", "ensemble") for path in (ROOT / package).glob("*.py")
    ]
    commands = {path for path in scripts if "def main(" in path.read_text()}
    assert {f"{path.parent.name}.{path.stem}" for path in commands} == set(COMMANDS)
