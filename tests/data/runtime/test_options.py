"""Options as dataclasses, and commands named by their first word or by the flag that they were once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from data.errors import UserError, parse_positive_int
from data.runtime.options import Command, changed_options, flag, group, option, parse, positional, run_command


@dataclass(frozen=True, kw_only=True)
class Inner:
    workers: int | None = option("how many", None, type=parse_positive_int)


@dataclass(frozen=True, kw_only=True)
class Options:
    folder: Path = positional("the folder")
    more: tuple[Path, ...] = positional("more of them", ())
    top: int = option("how many", 10, type=parse_positive_int)
    names: tuple[str, ...] = option("some names", ())
    way: Literal["up", "down"] = option("the way", "up")
    is_quiet: bool = option("say nothing", False)
    is_frozen: bool | None = option("None where it isn't said", None)
    limits: tuple[float, float] | None = option("two limits", None, nargs=2, metavar=("LOW", "HIGH"))
    inner: Inner = group("how it is computed")


@dataclass(frozen=True, kw_only=True)
class Required:
    out: Path = option("where it goes")


def test_defaults_and_values_have_the_types_of_their_fields():
    assert parse(Options, ["a"], "p", None) == Options(folder=Path("a"), inner=Inner())
    words = ["a", "b", "c", "--top", "3", "--names", "x", "y", "--way", "down", "--is-quiet", "--is-frozen"]
    words += ["--limits", "0.5", "2", "--workers", "2"]
    found = parse(Options, words, "p", None)
    assert found == Options(
        folder=Path("a"), more=(Path("b"), Path("c")), top=3, names=("x", "y"), way="down", is_quiet=True,
        is_frozen=True, limits=(0.5, 2.0), inner=Inner(workers=2),
    )  # fmt: skip
    assert {flag(name) for name in changed_options(found)} == {
        "--folder", "--more", "--top", "--names", "--way", "--is-quiet", "--is-frozen", "--limits", "--workers",
    }  # fmt: skip
    assert list(changed_options(parse(Options, ["a", "--top", "10"], "p", None))) == ["folder"]


@pytest.mark.parametrize(
    ("options", "words", "said"),
    [
        (Options, [], "the following arguments are required: folder"),
        (Required, [], "the following arguments are required: --out"),
        (Options, ["a", "--way", "left"], "argument --way: invalid choice: 'left' (choose from 'up', 'down')"),
        (Options, ["a", "--workers", "0"], "argument --workers: '0' isn't an integer of at least 1"),
        (Options, ["a", "--limits", "1"], "argument --limits: expected 2 arguments"),
        (Options, ["a", "--to", "3", "--no-such"], "unrecognized arguments: --no-such"),
    ],
)
def test_what_is_wrong_is_named(options, words, said, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(options, words, "p", None)
    assert caught.value.code == 2
    assert f"p: error: {said}" in capsys.readouterr().err


def test_help_names_defaults_and_titles(capsys):
    with pytest.raises(SystemExit):
        parse(Options, ["--help"], "p", "What it does.")
    text = capsys.readouterr().out
    for line in ("What it does.", "--top N", "how many (default: 10)", "how it is computed:", "--limits LOW HIGH"):
        assert line in text
    assert "default: None" not in text
    assert "default: False" not in text


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    file: Path = positional("the file")
    store: str = option("the store", "store")


@dataclass(frozen=True, kw_only=True)
class Status:
    store: str = option("the store", "store")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["x", "--workers", "2"], Options(folder=Path("x"), inner=Inner(workers=2))),
        (["evaluate", "x", "--store", "s"], Evaluation(file=Path("x"), store="s")),
        (["--store", "s", "evaluate", "x"], Evaluation(file=Path("x"), store="s")),
        (["--store=s", "evaluate", "x"], Evaluation(file=Path("x"), store="s")),
        (["--evaluate", "x", "--store", "s"], Evaluation(file=Path("x"), store="s")),
        (["--store", "s", "--evaluate", "x"], Evaluation(file=Path("x"), store="s")),
        (["--store", "s", "--evaluate=x"], Evaluation(file=Path("x"), store="s")),
        (["--status", "--store", "s"], Status(store="s")),
        (["status"], Status()),
        (["--names", "status", "--", "x"], Options(folder=Path("x"), names=("status",), inner=Inner())),
        (
            ["--names", "a", "status", "--top", "3", "x"],
            Options(folder=Path("x"), names=("a", "status"), top=3, inner=Inner()),
        ),
    ],
)
def test_a_command_is_named_by_its_first_word_or_by_its_flag(words, expected):
    found = []
    others = {"evaluate": Command(Evaluation, found.append), "status": Command(Status, found.append)}
    others["top"] = Command(Status, found.append)  # --top is an option of the default command
    run_command(words, "p", None, Command(Options, found.append), others)
    assert found == [expected]


def test_a_command_that_is_none_is_named_with_those_that_are():
    others = {"evaluate": Command(Evaluation, print)}
    with pytest.raises(UserError, match="unknown command 'evaluat'; known: evaluate"):
        run_command(["evaluat", "x"], "p", None, Command(Status, print), others)
