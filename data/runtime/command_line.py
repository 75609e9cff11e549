"""Exit status, error messages and log output of every command."""

import contextlib
import errno
import functools
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence

from data.errors import UserError
from data.runtime.printable import make_printable

GC_THRESHOLD = 50_000
"""Number of objects allocated between two garbage collections in a command's process; Python's default is 700.

Imports allocate long-lived objects; with the default, a quarter of the CPU time of `ensemble/select.py` is spent on
scanning them (measured: 5.4 s, and 4.2 s with this).
"""

OWN_LOGGERS = ("chorale", "data.")
"""Beginnings of the names of this project's loggers. Each of their messages is one line; those of libraries may be
several.
"""

REMEDIES = {
    errno.ENOSPC: "free space on that disk, or name a folder on another one",
    errno.EDQUOT: "your quota on that disk is used up: remove files, or name a folder on another disk",
    errno.EFBIG: "the file system or `ulimit -f` allows no file of this size: name another folder, or raise the limit",
    errno.EACCES: "change the permissions, or name another file or folder",
    errno.EPERM: "change the permissions, or name another file or folder",
    errno.EROFS: "name a folder that can be written",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path: a part of it is a file",
    errno.EISDIR: "check the path: a file is needed, not a folder",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.EIO: "the disk or the network drive reports a defect: use another one",
}
"""Remedies by the number of an operating system's error."""


SYMLINK_LOOP = "Symlink loop from "
"""Beginning of the error with which pathlib refuses a link to itself, an OSError from Python 3.13 on."""


def explain_os_error(error: OSError) -> str:
    """Return a sentence about an error of the operating system that nothing else has explained: the files, the reason
    and the remedy.
    """
    cause = getattr(error, "cause", None)  # of a Ray worker's error, which is of the same class
    error = cause if isinstance(cause, OSError) else error
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    where = " and ".join(names) or "a file or a connection"
    reason = error.strerror or str(error) or type(error).__name__
    remedy = REMEDIES.get(error.errno or 0, "check the path, the disk and the network")
    return f"{where} can't be used: {reason}; {remedy}, then re-run the same command"


class PrintableFormatter(logging.Formatter):
    """Formatter of log messages that shows control characters, which may come from names of files and from servers."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the name is logging's
        """Return the message of a record; one of this project's messages is one line, whatever names are in it."""
        return make_printable(super().formatMessage(record), "" if record.name.startswith(OWN_LOGGERS) else "\n\t")

    def format(self, record: logging.LogRecord) -> str:
        """Return the message of a record with its traceback, if it has one."""
        return make_printable(super().format(record), "\n\t")


def command(main: Callable[[Sequence[str] | None], int | None]) -> Callable[..., int]:
    """Decorate a command's `main` so that it returns an exit status; only programming errors are raised.

    The decorated function takes the arguments of the command line (default: those of `sys.argv`). A UserError is
    printed as one line on standard error, with status 2, the status of argparse's errors, and so is an error of the
    operating system, such as a full disk or a missing permission. Ctrl-C gives status 130, and a reader that closes the
    pipe early (`| head`) status 141. Log messages go to standard error while the command runs.
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
                write_error(str(error))
                return 2
            except KeyboardInterrupt:
                return 130
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 141
            except OSError as error:
                write_error(explain_os_error(error))
                return 2
            except RuntimeError as error:
                if not str(error).startswith(SYMLINK_LOOP):
                    raise
                write_error(f"{error}: name a folder, or correct the link")
                return 2

    return run


def write_error(message: str) -> None:
    """Write an error message to standard error as one line."""
    sys.stderr.write(f"error: {make_printable(message)}\n")


@contextlib.contextmanager
def log_to_stderr() -> Iterator[None]:
    """Write log messages of level INFO and above to standard error, as bare lines, within the context."""
    root, handler = logging.getLogger(), logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(message)s"))
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
