"""The pages: commands parse, examples run, links lead to files, and figures are those of the files in docs/results."""

import importlib
import re
import runpy
import shlex
import shutil
import tomllib
import warnings
from pathlib import Path

import click
import mlflow
import pytest

from data.runtime import options

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- test: run -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


class Parsed(Exception):  # noqa: N818
    """A command line was accepted by its parser."""


def blocks(page, language):
    """The code blocks of a page in a language, and whether each is marked as one to run."""
    return [(match[3], bool(match[1])) for match in BLOCK.finditer(page.read_text()) if match[2] == language]


def commands(text):
    """The commands of a block of shell code, with lines that continue joined."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield from re.split(r" && (?=(?:[^']*'[^']*')*[^']*$)", line.strip())


COMMANDS = sorted(
    {(page.name, command) for page in PAGES for text, _ in blocks(page, "bash") for command in commands(text)}
)


@pytest.fixture
def only_parse(monkeypatch):
    """Have commands of the project stop after their options have been parsed."""
    parse = options.parse

    def stop(*arguments, **settings):
        parse(*arguments, **settings)
        raise Parsed

    monkeypatch.setattr(options, "parse", stop)


def check(words):
    """Check a command line with the parser of its program. Raises Parsed, or fails."""
    program, *rest = words
    if program == "python" and rest[0] == "-m":
        assert rest[1] in {"pytest", "sphinx", "cProfile"}
        assert all(
            (ROOT / word.partition("::")[0]).exists()
            for word in rest[2:]
            if word.startswith(("tests/", "docs")) and "_build" not in word
        )
    elif program == "python":
        script = ROOT / rest[0]
        assert script.is_file(), script
        if script.parent.name in ("data", "trainables", "sweeps", "ensemble"):
            with pytest.raises(Parsed):
                importlib.import_module(f"{script.parent.name}.{script.stem}").main(rest[1:])
    elif program == "bash":
        assert (ROOT / rest[0]).is_file()
    elif program in ("pip", "uv"):
        assert all(set(extra[1].split(",")) <= EXTRAS for word in rest if (extra := re.fullmatch(r"\.\[(.*)\]", word)))
    elif program == "ray":
        check_click("ray.scripts.scripts", rest)
        for script in re.findall(r"python (\S+ [^'&]*)", " ".join(rest)) if rest[0] in ("exec", "job") else ():
            check(["python", *shlex.split(script)])
    elif program == "mlflow":
        check_click("mlflow.cli", rest)
    else:
        assert program in {"chmod", "export", "pre-commit"}, f"no parser is known for {program}"


def check_click(module, words):
    """Parse a command line of a program that is written with click."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = importlib.import_module(module).cli
        while isinstance(group, click.Group):
            name, *words = words
            group = group.get_command(click.Context(group), name)
        group.make_context(name, list(words))


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_command_on_a_page_parses(page, command, only_parse):
    check(shlex.split(command))


def test_an_unknown_option_on_a_page_would_be_found(only_parse, capsys):
    assert importlib.import_module("ensemble.select").main(["--no-such-option"]) == 2
    assert importlib.import_module("sweeps.grid").main(["--space", "demo", "stauts"]) == 2


@pytest.fixture
def example_folder(swept, tones, tone_store, copy_runs, call_command, tmp_path, monkeypatch):
    """A folder with what the examples of the pages name: store, runs with a selected ensemble, my_sounds, scores."""
    copy_runs(swept[0], tmp_path / "runs")
    shutil.copytree(tone_store, tmp_path / "store")
    shutil.copytree(tones, tmp_path / "my_sounds")
    monkeypatch.chdir(tmp_path)
    selected = call_command("ensemble/select.py", "--no-test")
    assert selected.returncode == 0, selected.stderr
    yield tmp_path
    mlflow.set_tracking_uri(None)  # that of an example, for other tests and the processes that they start


RUNNABLE = [page for page in PAGES[2:] if any(run for _, run in blocks(page, "bash")) or blocks(page, "python")]


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page, example_folder, call_command):
    """The commands of blocks marked `test: run`, then the page's Python, in one folder in the order of the page."""
    for text, marked in blocks(page, "bash"):
        for command in commands(text) if marked else ():
            _, script, *words = shlex.split(command)
            done = call_command(script, *words)
            assert done.returncode == 0, f"{command}\n{done.stderr}"
    for text, _ in blocks(page, "python"):
        exec(compile(text, page.name, "exec"), {"__name__": "example"})


def test_the_python_of_the_first_page_runs(example_folder, call_command):
    add = ["exported", "--add", "my_sounds"]
    for command, words in (
        ("ensemble/export.py", ["--ensemble", "runs/ensembles/first/ensemble.json", "--out", "exported"]),
        ("ensemble/search.py", add),
    ):
        assert call_command(command, *words).returncode == 0
    [(text, _)] = blocks(ROOT / "README.md", "python")
    exec(compile(text, "README.md", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_to_files(page):
    text = page.read_text()
    for target in LINK.findall(text):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target
    for path in re.findall(r"`((?:data|trainables|sweeps|ensemble|tests|docs)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / path).exists() or "NAME" in path, path


def test_every_page_is_reached_from_the_first_page():
    linked = {target for target in LINK.findall((ROOT / "README.md").read_text()) if target.endswith(".md")}
    included = {"docs/index.md", "docs/api.md", "docs/contributing.md", "docs/changelog.md"}
    assert linked | included >= {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}


def test_the_first_page_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 1300
    assert len(text.splitlines()) <= 130
    assert max(map(len, text.splitlines())) <= 120


def test_figures_are_those_of_the_files_of_results():
    write_results = runpy.run_path(str(ROOT / "docs/write_results.py"))
    for page in write_results["pages"]():
        assert write_results["with_results"](page.read_text()) == page.read_text(), "run python docs/write_results.py"
