"""Command-line options declared as a frozen dataclass, and the parser that is built from it.

    @dataclass(frozen=True, kw_only=True)
    class Options:
        folder: Path = positional("folder to read")
        top: int = option("number of recordings per sentence", 10, type=positive)
        compute: ComputeOptions = group("compute")

The type of a field determines how it is parsed: `bool` is a flag, `tuple[X, ...]` takes several values, `Literal` has
choices. The parser is argparse's because the alternatives start too slowly: cyclopts takes 0.38 s of CPU time for a
--help and tyro 0.24 s for any command line, and a command's --help must take at most 0.5 s.
"""

import argparse
import dataclasses
import functools
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Generic, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from data.errors import unknown_name_error
from data.runtime.printable import make_printable

T = TypeVar("T")

METAVARS = {int: "N", float: "X", Path: "PATH"}
"""Default placeholders for values in the help, by type."""

HELP_INDENT = 32
"""Column at which the descriptions of the options begin in the help."""


def option(description: str, default: Any = dataclasses.MISSING, **settings: Any) -> Any:
    """Return a dataclass field that declares the command-line option --NAME, where NAME is the field's name. The help
    shows its description; without a default, the option is required.

    The other `settings` are passed to `argparse.ArgumentParser.add_argument`, except `section`: the title under which
    the help lists the option.
    """
    return dataclasses.field(default=default, metadata={"help": description, **settings})


def positional(description: str, default: Any = dataclasses.MISSING, **settings: Any) -> Any:
    """Return a dataclass field that declares a positional argument of the command line, with its description in the
    help; with a default it is optional. `settings` are passed to argparse, as by `option`.
    """
    return option(description, default, is_positional=True, **settings)


def group(title: str) -> Any:
    """Return a dataclass field whose type is itself a dataclass of options. The help lists these options under
    `title`.
    """
    return dataclasses.field(metadata={"title": title})


def parse(options: type[T], argv: Sequence[str], prog: str, description: str | None, epilog: str = "") -> T:
    """Parse `argv`, the words of a command line, and return an instance of `options`, a dataclass of options. The other
    parameters are the program's name and texts for the help, as argparse takes them.

    Raises SystemExit as argparse does: for --help, and with status 2 if an option is wrong.
    """
    parser = build_parser(options, prog, description, epilog)
    return build(options, vars(parser.parse_intermixed_args(argv)))


class PrintableParser(argparse.ArgumentParser):
    """Parser whose errors show control characters of the words of a command line, which a shell may take from the
    names of files.
    """

    def error(self, message: str) -> NoReturn:
        super().error(make_printable(message))


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Formatter of the help that wraps the paragraphs of the description at the width of the terminal, and keeps
    paragraphs with indented lines, such as examples.
    """

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(part if "\n " in part else textwrap.fill(part, width) for part in paragraphs)


def build_parser(options: type, prog: str, description: str | None, epilog: str = "") -> argparse.ArgumentParser:
    """Return argparse's parser for a dataclass of options. Its usage line names only the required options and the
    positional arguments; `prog`, `description` and `epilog` are those of `argparse.ArgumentParser`.
    """
    parser = PrintableParser(
        prog=prog, description=description, epilog=epilog,
        formatter_class=functools.partial(HelpFormatter, max_help_position=HELP_INDENT),
    )  # fmt: skip
    add_options(parser, options, "", {"": parser})
    required = [action for action in parser._actions if action.required and action.option_strings]
    words = [f"{action.option_strings[0]} {action.metavar or action.dest.upper()}" for action in required]
    positionals = [action for action in parser._actions if not action.option_strings]
    words += [action.dest if action.required else f"[{action.dest}]" for action in positionals]
    parser.usage = " ".join([prog, *words, "[options]"])
    return parser


def add_options(
    parser: argparse.ArgumentParser, options: type, title: str, groups: dict[str, argparse._ActionsContainer]
) -> None:
    """Add an argument to the parser for each field of a dataclass of options. The help lists them under `title`, except
    fields with a `section` of their own.

    `groups` are the sections of the help so far, by title; new ones are added to it.
    """
    types = get_type_hints(options)
    for field in dataclasses.fields(options):
        settings = dict(field.metadata)
        if "title" in settings:
            add_options(parser, types[field.name], settings["title"], groups)
            continue
        section = settings.pop("section", title)
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        settings = settings_of_type(types[field.name]) | settings
        is_required = field.default is dataclasses.MISSING
        if not is_required:
            settings["default"] = field.default
            if field.default not in (None, (), "", False) and "default" not in settings["help"]:
                settings["help"] += " (default: %(default)s)"
        if settings.pop("is_positional", False):
            settings["nargs"] = ("*" if settings.get("nargs") else "?") if not is_required else settings.get("nargs")
            settings.pop("metavar", None)
            groups[section].add_argument(field.name, **settings)
        else:
            settings |= {"required": True} if is_required else {}
            groups[section].add_argument(flag(field.name), **settings)


def settings_of_type(annotation: Any) -> dict[str, Any]:
    """Return the keyword arguments of argparse's `add_argument` that follow from the type of a field, such as
    {"type": int, "metavar": "N"}.
    """
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
    """Return an instance of `options`, a dataclass of options, with the values that argparse has parsed, by field
    name.
    """
    types = get_type_hints(options)
    fields = {
        field.name: build(types[field.name], values) if "title" in field.metadata else values[field.name]
        for field in dataclasses.fields(options)  # type: ignore[arg-type]
    }
    return options(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


@dataclasses.dataclass(frozen=True)
class Command(Generic[T]):
    """Command of a program: the dataclass of its options, and the function that runs it and returns its exit status
    (None means 0).
    """

    options: type[T]
    run: Callable[[T], int | None]


def run_command(
    argv: Sequence[str] | None,
    prog: str,
    description: str | None,
    default: Command[Any],
    others: Mapping[str, Command[Any]] = MappingProxyType({}),
) -> int | None:
    """Parse the command line `argv`, run the command, and return its exit status; None means success. The command is
    the one of `others` that the first word names, or `default`. The help shows `prog` as the program's name, and
    `description`.

    Options that the default command shares with the named one, such as --store, may precede its name. The flag --NAME
    works in place of the word NAME, for commands that were options in earlier versions: `--evaluate FILE` is
    `evaluate FILE`; unless the default command has an option of this name.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    default_flags = {flag(field.name) for field, _ in typed_fields(default.options)}
    flags = [word.partition("=")[0] for word in words]
    name = next((name for name in others if flag(name) in flags and flag(name) not in default_flags), "")
    if name:
        words = words_after_flag(words, name, others[name])
    else:
        index = index_of_command(words, [default, *others.values()])
        if index < len(words) and words[index] in others:
            name = words.pop(index)
        elif others and words and not words[0].startswith("-") and not takes_positional(default):
            raise unknown_name_error("command", words[0], list(others))
    if not name:
        epilog = f"other commands (COMMAND --help): {', '.join(others)}" if others else ""
        return default.run(parse(default.options, words, prog, description, epilog))
    command = others[name]
    guide = next((line for line in (description or "").splitlines() if line.startswith("Guide: ")), "")
    return command.run(parse(command.options, words, f"{prog} {name}", inspect.getdoc(command.run), guide))


def index_of_command(words: Sequence[str], commands: Iterable[Command[Any]]) -> int:
    """Return the index of the word that may name a command: the first word after the options that take a value, and
    their values, with which `words` may begin. Return len(words) if no word follows these.
    """
    takes_one: dict[str, bool] = {}
    for field, annotation in (pair for command in commands for pair in typed_fields(command.options)):
        settings = settings_of_type(annotation) | field.metadata
        takes_one.setdefault(flag(field.name), not settings.keys() & {"action", "nargs", "is_positional"})
    index = 0
    while index < len(words) and takes_one.get(words[index].partition("=")[0], False):
        index += 1 if "=" in words[index] else 2
    return index


def typed_fields(options: type) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """Yield pairs of a field and its type for a dataclass of options, including the fields of its groups."""
    types = get_type_hints(options)
    for field in dataclasses.fields(options):
        if "title" in field.metadata:
            yield from typed_fields(types[field.name])
        else:
            yield field, types[field.name]


def words_after_flag(words: Sequence[str], name: str, command: Command[Any]) -> list[str]:
    """Return the words of a command line without --NAME, which stands for the command NAME. If the command has a
    positional argument, the value that follows --NAME is moved to the front.
    """
    index = next(index for index, word in enumerate(words) if word.partition("=")[0] == f"--{name}")
    _, equals, value = words[index].partition("=")
    values = [value] if equals else words[index + 1 : index + 2] if takes_positional(command) else []
    rest = words[index + 1 :] if equals else words[index + 1 + len(values) :]
    return [*values, *words[:index], *rest]


def takes_positional(command: Command[Any]) -> bool:
    """Return whether a command has a positional argument."""
    return any("is_positional" in field.metadata for field in dataclasses.fields(command.options))


def flag(name: str) -> str:
    """Return the command-line option of a field, by the field's name: '--peak-rate' for 'peak_rate'."""
    return f"--{name.replace('_', '-')}"


def changed_options(options: Any) -> dict[str, Any]:
    """Return the values of the options that differ from their defaults, by name, including those of groups."""
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if "title" in field.metadata:
            changed |= changed_options(value)
        elif value != field.default:
            changed[field.name] = value
    return changed
