"""A user's mistake, told without a traceback."""

import argparse
import logging
import os
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Something the user gave is wrong. The message says what, where, the rule and the remedy."""


def unknown_name(kind: str, name: str, known: list[str]) -> UserError:
    """The error for a name that nothing answers to; it lists the known ones."""
    return UserError(f"unknown {kind} {name!r}; known: {', '.join(known)}")


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command's `main` and leave the process with its exit status.

    A UserError becomes one line on stderr and status 2, Ctrl-C status 130, and a reader that closed the pipe early
    (`| head`) status 141; anything else is a defect and keeps its traceback.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        status = main() or 0
        sys.stdout.flush()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        status = 2
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    sys.exit(status)


def positive(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} isn't a whole number from 1 on")
    return int(text)
