"""Manifest of an index, which names the parts that belong to it.

    DIR/manifest.json            ensemble, size of the vectors, parts, and the reduction if there is one
    DIR/parts/NAME/              recordings and vectors, never changed (`ensemble.index.parts`)
    DIR/reductions/NAME/         projection and quantiser of a large index (`ensemble.index.reduction`)

The manifest is replaced atomically after everything that it names is on the disk. A reader sees the former index or
the new one, and keeps what it has opened, although the writer removes parts that are no longer named.
"""

import dataclasses
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import dacite

from data.errors import UserError
from data.store.files import read_json, write_json

MANIFEST_FILE = "manifest.json"
PARTS = "parts"
REDUCTIONS = "reductions"
FORMAT_VERSION = 2
NAME = re.compile("[0-9a-f]{16}")
"""Names of parts and reductions, which are random."""


@dataclass(frozen=True)
class PartEntry:
    """Part of an index. If recordings of it are removed, a file in its folder lists them."""

    name: str
    num_recordings: int
    num_rows: int
    num_removed: int = 0

    def __post_init__(self) -> None:
        require_name(self.name)
        if not 0 <= self.num_removed <= self.num_recordings <= self.num_rows:
            raise ValueError(f"parts: {self.name} has impossible numbers of recordings")


@dataclass(frozen=True)
class ReductionEntry:
    """Reduction of an index, and the number of rows that the index had when the reduction was computed."""

    name: str
    num_rows: int

    def __post_init__(self) -> None:
        require_name(self.name)


@dataclass(frozen=True)
class Manifest:
    """Contents of an index."""

    signature: str  # of the ensemble
    vector_size: int
    parts: tuple[PartEntry, ...] = ()
    reduction: ReductionEntry | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.vector_size < 1:
            raise ValueError("vector_size: a vector has at least one number")

    @property
    def num_recordings(self) -> int:
        """Number of recordings, without removed ones."""
        return sum(part.num_recordings - part.num_removed for part in self.parts)

    @property
    def num_rows(self) -> int:
        """Number of vectors, with those of removed recordings."""
        return sum(part.num_rows for part in self.parts)


def require_name(name: str) -> None:
    """Raise ValueError if a name, which becomes a part of a path, isn't one that this module makes."""
    if not NAME.fullmatch(name):
        raise ValueError(f"name: {name!r} doesn't consist of 16 hexadecimal digits")


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of an index, or None if the folder has none.

    Raises UserError if it is damaged, or was written by another version.
    """
    path = folder / MANIFEST_FILE
    if not path.exists():
        return None
    content = read_json(path)
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has format version {version!r}, not {FORMAT_VERSION}: remove {folder} and --add again")
    try:
        return dacite.from_dict(Manifest, content, dacite.Config(strict=True, cast=[tuple]))
    except (dacite.DaciteError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}; remove {folder}, and --add the recordings again") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of an index atomically, and remove the parts and reductions that it doesn't name."""
    write_json(folder / MANIFEST_FILE, dataclasses.asdict(manifest))
    remove_unnamed(folder / PARTS, {part.name for part in manifest.parts})
    remove_unnamed(folder / REDUCTIONS, {manifest.reduction.name} if manifest.reduction else set())


def remove_unnamed(folder: Path, names: set[str]) -> None:
    """Remove the entries of a folder that have none of these names, if the folder exists."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in names:
            shutil.rmtree(path, ignore_errors=True)


def identify_manifest(folder: Path) -> tuple[int, int] | None:
    """Return values that change whenever the manifest of an index is written; None if there is none."""
    try:
        status = (folder / MANIFEST_FILE).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
