"""The options of a command as a frozen dataclass, from which its parser is made.

    @dataclass(frozen=True, kw_only=True)
    class Options:
        folder: Path = positional("the folder to read")
        top: int = option("recordings a sentence", 10, type=positive)
        compute: ComputeOptions = group("compute")

The type of a field says how it is given: `bool` is a flag, `tuple[X, ...]` takes several values, `Literal` has choices.
argparse, because of what the alternatives cost: cyclopts spends 0.38 s of CPU on a --help and tyro 0.24 s on any
command line, where all of a command's --help is to take 0.5 s.
"""

import argparse
import dataclasses
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from data.errors import unknown_name

T = TypeVar("T")

METAVARS = {int: "N", float: "X", Path: "PATH"}
"""Placeholders for values in the help, where an option names none."""


def option(description: str, default: Any = dataclasses.MISSING, **settings: Any) -> Any:
    """Return the field of an option --NAME; without a default it is required.

    `settings` are those of `argparse.ArgumentParser.add_argument`.
    """
    return dataclasses.field(default=default, metadata={"help": description, **settings})


def positional(description: str, default: Any = dataclasses.MISSING, **settings: Any) -> Any:
    """Return the field of an argument that is given by its place; with a default it may be left out."""
    return option(description, default, is_positional=True, **settings)


def group(title: str) -> Any:
    """Return a field whose type is a dataclass of options; the help shows them under a title."""
    return dataclasses.field(metadata={"title": title})


def parse(options: type[T], argv: Sequence[str], prog: str, description: str | None, epilog: str = "") -> T:
    """Return the options of a command line.

    Raises SystemExit as argparse does: for --help, and with status 2 where an option is wrong.
    """
    parser = argparse.ArgumentParser(
        prog=prog, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, options)
    return build(options, vars(parser.parse_args(argv)))


def add_options(parser: argparse._ActionsContainer, options: type) -> None:
    """Add the fields of a dataclass to a parser."""
    types = get_type_hints(options)
    for field in dataclasses.fields(options):
        settings = dict(field.metadata)
        if "title" in settings:
            add_options(parser.add_argument_group(settings["title"]), types[field.name])
            continue
        settings = settings_of_type(types[field.name]) | settings
        is_required = field.default is dataclasses.MISSING
        if not is_required:
            settings["default"] = field.default
            if field.default not in (None, (), "", False) and "default" not in settings["help"]:
                settings["help"] += " (default: %(default)s)"
        if settings.pop("is_positional", False):
            settings["nargs"] = ("*" if settings.get("nargs") else "?") if not is_required else settings.get("nargs")
            settings.pop("metavar", None)
            parser.add_argument(field.name, **settings)
        else:
            settings |= {"required": True} if is_required else {}
            parser.add_argument(flag(field.name), **settings)


def settings_of_type(annotation: Any) -> dict[str, Any]:
    """Return what argparse has to know of a field's type."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        (annotation,) = (part for part in arguments if part is not NoneType)
        return settings_of_type(annotation)
    if origin is tuple:
        return settings_of_type(arguments[0]) | {"nargs": "+"}
    if origin is Literal:
        return {"choices": arguments}
    if annotation is bool:
        return {"action": "store_true"}
    return {"type": annotation} | ({"metavar": METAVARS[annotation]} if annotation in METAVARS else {})


def build(options: type[T], values: Mapping[str, Any]) -> T:
    """Return a dataclass of options from the values that argparse has found."""
    types = get_type_hints(options)
    own = {
        field.name: build(types[field.name], values) if "title" in field.metadata else values[field.name]
        for field in dataclasses.fields(options)  # type: ignore[arg-type]
    }
    return options(**{name: tuple(value) if isinstance(value, list) else value for name, value in own.items()})


@dataclasses.dataclass(frozen=True)
class Command(Generic[T]):
    """A command: its options, and the function that runs it and returns its exit status (None for 0)."""

    options: type[T]
    run: Callable[[T], int | None]


def run_command(
    argv: Sequence[str] | None,
    prog: str,
    description: str | None,
    default: Command[Any],
    others: Mapping[str, Command[Any]] = MappingProxyType({}),
) -> int | None:
    """Run the command of `others` that the first word names, else the default one.

    `--NAME` in place of the word NAME works, too, as for commands that were options once: `--evaluate FILE` is
    `evaluate FILE`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    name = next((name for name in others if any(word.partition("=")[0] == f"--{name}" for word in words)), "")
    if name:
        words = words_after_flag(words, name, others[name])
    elif (place := place_of_command(words)) < len(words) and words[place] in others:
        name = words.pop(place)
    elif others and words and not words[0].startswith("-") and not takes_positional(default):
        raise unknown_name("command", words[0], list(others))
    if not name:
        epilog = f"other commands (NAME --help): {', '.join(others)}" if others else ""
        return default.run(parse(default.options, words, prog, description, epilog))
    command = others[name]
    return command.run(parse(command.options, words, f"{prog} {name}", inspect.getdoc(command.run)))


def place_of_command(words: Sequence[str]) -> int:
    """Return the place of the first word that is neither an option nor the value of one."""
    place = 0
    while place < len(words) and words[place].startswith("--"):
        place += 1 if "=" in words[place] else 2
    return place


def words_after_flag(words: Sequence[str], name: str, command: Command[Any]) -> list[str]:
    """Return the words without --NAME, the value that follows it first where the command takes one by its place."""
    place = next(place for place, word in enumerate(words) if word.partition("=")[0] == f"--{name}")
    _, equals, value = words[place].partition("=")
    values = [value] if equals else words[place + 1 : place + 2] if takes_positional(command) else []
    rest = words[place + 1 :] if equals else words[place + 1 + len(values) :]
    return [*values, *words[:place], *rest]


def takes_positional(command: Command[Any]) -> bool:
    """Return whether a command takes an argument by its place."""
    return any("is_positional" in field.metadata for field in dataclasses.fields(command.options))


def flag(name: str) -> str:
    """Return a field's name as it is given on a command line."""
    return f"--{name.replace('_', '-')}"


def given(options: Any) -> dict[str, Any]:
    """Return the values of the options that differ from their defaults, by name, those of groups included."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        found |= given(value) if "title" in field.metadata else {field.name: value} if value != field.default else {}
    return found
