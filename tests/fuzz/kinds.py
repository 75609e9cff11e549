"""Kinds of files and answers that may come from a stranger, and the loop that reads mutations of them."""

import os
import resource
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mutations import mutate

from data.errors import UserError

EXTRA_BYTES = 4 * 2**30
"""Address space that reading may take beyond what the process has before it begins."""


@dataclass(frozen=True)
class Kind:
    """A file, how the commands read it, and how it is mutated.

    `read` takes an empty folder for output, and raises UserError if the file is refused. `mutate` takes the file's
    contents, the kind's name and the mutation's number. An answer of a server is a file that a server here sends.
    """

    path: Path
    read: Callable[[Path], None]
    mutate: Callable[[bytes, str, int], bytes] = mutate
    is_error: bool = False  # an answer that says that something failed, which is refused as it is


def fuzz(build, folder, count, *names):
    """Read `count` mutations of each kind that `build` makes in a folder; print how many were read and refused. What
    goes wrong is printed at the end, and the exit status is then 1.
    """
    warnings.simplefilter("ignore")
    root, home = folder / "a" / "b" / "whole", folder / "home"
    root.mkdir(parents=True)
    home.mkdir()
    (folder / "out").mkdir()
    os.environ.update(HOME=str(home), TMPDIR=str(folder / "out"), XDG_CACHE_HOME=str(home))
    kinds = build(root)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + EXTRA_BYTES, resource.RLIM_INFINITY))
    failures = []
    for name in names or kinds:
        num_read, found = read_mutations(kinds[name], name, int(count), folder)
        failures += found
        sys.stdout.write(f"{name} {num_read} {int(count) - num_read}\n")
    sys.stderr.write("\n".join(failures[:20]) + f"\n{len(failures)} failures\n")
    return bool(failures)


def read_mutations(kind, name, count, folder):
    """Read a file as it is and in `count` mutations; return how many of these were read, and what went wrong."""
    contents, num_read, failures = kind.path.read_bytes(), 0, []
    before = snapshot(folder, kind.path)
    for number in range(-1, count):
        sys.stderr.write(f"{name}, mutation {number}\n")
        data = contents if number < 0 else kind.mutate(contents, name, number)
        kind.path.unlink()  # the old file may still be mapped
        kind.path.write_bytes(data)
        shutil.rmtree(folder / "out", ignore_errors=True)
        (folder / "out").mkdir()
        try:
            kind.read(folder / "out")
            num_read += number >= 0
        except UserError as error:
            if number < 0 and not kind.is_error:
                failures.append(f"{name} as it is: {error}")
        except BaseException:
            failures.append(f"{name}, mutation {number}: {data[:300]!r}\n{traceback.format_exc()[-1_500:]}")
        if kind.path.read_bytes() != data or snapshot(folder, kind.path) != before:
            failures.append(f"{name}, mutation {number}: something was written beside the output")
            before = snapshot(folder, kind.path)
    kind.path.write_bytes(contents)
    return num_read, failures


def snapshot(folder, mutated):
    """Every file below a folder but the mutated one, with its size and time, except in the folder for output."""
    files, todo = {}, [str(folder)]
    while todo:
        for entry in os.scandir(todo.pop()):
            if entry.is_dir(follow_symlinks=False):
                files[entry.path] = None
                todo += [] if entry.path == f"{folder}/out" else [entry.path]
            elif entry.path != str(mutated):
                status = entry.stat(follow_symlinks=False)
                files[entry.path] = (status.st_size, status.st_mtime_ns)
    return files
