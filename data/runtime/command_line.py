"""What all commands share: exit statuses, messages, and the log on standard error."""

import contextlib
import functools
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence

from data.errors import UserError

GC_THRESHOLD = 50_000
"""Objects that are allocated between two garbage collections in a command's process; Python's default is 700.

Imports allocate objects that stay, and with the default a quarter of the CPU time of `ensemble/select.py` is spent on
looking through them (measured: 5.4 s, and 4.2 s with this).
"""


def command(main: Callable[[Sequence[str] | None], int | None]) -> Callable[..., int]:
    """Decorate a command's `main`, so that it returns the exit status of a process, and raises only defects.

    The decorated function takes the words after the command's name (default: those of `sys.argv`). A UserError becomes
    one line on standard error and status 2, as do argparse's errors; Ctrl-C becomes status 130, and a reader that
    closed the pipe early (`| head`) status 141. Log messages go to standard error while the command runs.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        if argv is None:  # this process is the command's own
            gc.set_threshold(GC_THRESHOLD)
        with logging_to_stderr():
            try:
                status = main(None if argv is None else [str(word) for word in argv]) or 0
                sys.stdout.flush()
                return status
            except SystemExit as end:  # argparse has printed its help, or what is wrong
                return int(end.code or 0)
            except UserError as error:
                sys.stderr.write(f"error: {error}\n")
                return 2
            except KeyboardInterrupt:
                return 130
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 141

    return run


@contextlib.contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Write log messages from INFO on to standard error, as bare lines, within the context."""
    root, handler = logging.getLogger(), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
