"""Commands whose first word may say which of several things they are to do."""

import argparse
from collections.abc import Callable, Mapping

Run = Callable[[argparse.Namespace], int | None]
AddArguments = Callable[[argparse.ArgumentParser], None]


def run_one(
    prog: str,
    description: str | None,
    default: tuple[Run, AddArguments],
    others: Mapping[str, tuple[Run, AddArguments]],
) -> int | None:
    """Run one of `others` where the first word names it, else `default`; all of them take --store."""
    shared = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    shared.add_argument("--store", default="store", help="where the shards are (default: %(default)s)")
    given, words = shared.parse_known_args()
    command = words[0] if words and words[0] in others else ""
    run, add_arguments = others.get(command, default)
    parser = argparse.ArgumentParser(
        prog=f"{prog} {command}".rstrip(),
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[shared],
    )
    add_arguments(parser)
    return run(parser.parse_args(words[1:] if command else words, given))
