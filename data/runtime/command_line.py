"""Exit status, error messages and log output of every command."""

import contextlib
import functools
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence

from data.errors import UserError

GC_THRESHOLD = 50_000
"""Number of objects allocated between two garbage collections in a command's process; Python's default is 700.

Imports allocate long-lived objects; with the default, a quarter of the CPU time of `ensemble/select.py` is spent on
scanning them (measured: 5.4 s, and 4.2 s with this).
"""


def command(main: Callable[[Sequence[str] | None], int | None]) -> Callable[..., int]:
    """Decorate a command's `main` so that it returns an exit status; only programming errors are raised.

    The decorated function takes the arguments of the command line (default: those of `sys.argv`). A UserError is
    printed as one line on standard error, with status 2, the status of argparse's errors; Ctrl-C gives status 130, and
    a reader that closes the pipe early (`| head`) status 141. Log messages go to standard error while the command runs.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        if argv is None:  # the process runs only this command
            gc.set_threshold(GC_THRESHOLD)
        with log_to_stderr():
            try:
                status = main(None if argv is None else [str(word) for word in argv]) or 0
                sys.stdout.flush()
                return status
            except SystemExit as end:  # argparse has printed its help or an error
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
def log_to_stderr() -> Iterator[None]:
    """Write log messages of level INFO and above to standard error, as bare lines, within the context."""
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
