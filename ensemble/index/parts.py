"""Part of an index: recordings, and vectors of their passages and moments. A part is written once, and never changed.

    NAME/recordings.arrow     path, stamp, duration, captions and waveform of each recording
    NAME/rows.arrow           recording, start, end and kind of each vector
    NAME/vectors.bin          float16 [R, D] without a header, memory-mapped
    NAME/removed-N.bin        numbers of the N removed recordings, int32, without a header

A passage is what the ensemble embeds as one clip; a moment is one segment of it. A passage of one segment is a moment,
too, and has one row. Rows are sorted by recording.

Shapes: A recordings, R rows, D the size of the vectors.
"""

import hashlib
import mmap
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.errors import UserError
from data.store.arrow_tables import open_table
from data.store.files import atomic_write, rename_folder, write_arrow_table
from data.store.scratch import create_scratch_folder
from ensemble.index.manifest import PARTS, PartEntry

RECORDINGS_FILE, ROWS_FILE, VECTORS_FILE = "recordings.arrow", "rows.arrow", "vectors.bin"
VECTOR_TYPE = np.dtype("<f2")

PASSAGE, MOMENT = 1, 2
"""Bits of the kind of a row."""

RECORDINGS_SCHEMA = pa.schema(
    [
        pa.field("id", pa.uint64(), nullable=False),
        pa.field("path", pa.large_string(), nullable=False),
        pa.field("root", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("mtime_ns", pa.int64(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
        pa.field("duration_s", pa.float64(), nullable=False),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("peaks", pa.large_binary(), nullable=False),
    ]
)
ROWS_SCHEMA = pa.schema(
    [
        pa.field("recording", pa.int32(), nullable=False),
        pa.field("start_s", pa.float32(), nullable=False),
        pa.field("end_s", pa.float32(), nullable=False),
        pa.field("kind", pa.uint8(), nullable=False),
    ]
)


UNKNOWN_DIGEST = bytes(32)
"""Digest of a file whose contents aren't known."""

FILE_COLUMNS = ("path", "root", "size", "mtime_ns", "sha256", "captions")


@dataclass(frozen=True)
class IndexedFile:
    """Audio file of a recording: the columns FILE_COLUMNS."""

    path: str
    root: str  # folder that was added
    size: int
    mtime_ns: int
    captions: tuple[str, ...] = ()
    sha256: bytes = UNKNOWN_DIGEST

    @property
    def stamp(self) -> tuple[int, int, tuple[str, ...]]:
        """Values by which an unchanged file is recognised."""
        return self.size, self.mtime_ns, self.captions


@dataclass(frozen=True)
class IndexedRecording:
    """Recording to write into a part, with its rows."""

    file: IndexedFile
    duration_s: float
    peaks: bytes
    starts_s: NDArray[np.float32]  # [R]
    ends_s: NDArray[np.float32]  # [R]
    kinds: NDArray[np.uint8]  # [R]
    vectors_RD: NDArray[np.float16] | NDArray[np.float32]


def compute_id(path: str) -> int:
    """Return the number that identifies a path: the first 8 bytes of its SHA-256."""
    return int.from_bytes(hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest()[:8], "big")


class Part:
    """Part of an index, opened. Files are memory-mapped.

    Args:
        folder: the folder of the index.
        entry: the part, as the manifest names it.
        vector_size: the size of the vectors.

    Raises:
        FileNotFoundError: if a file doesn't exist, such as after a writer has replaced the part.
        UserError: if a file is damaged.
    """

    def __init__(self, folder: Path, entry: PartEntry, vector_size: int) -> None:
        self.entry, self.folder = entry, folder / PARTS / entry.name
        remedy = f"remove {folder}, and --add the recordings again"
        path = self.folder / RECORDINGS_FILE
        self.recordings = open_table(path, str(path), remedy, RECORDINGS_SCHEMA)
        path = self.folder / ROWS_FILE
        self.rows = open_table(path, str(path), remedy, ROWS_SCHEMA)
        path, shape = self.folder / VECTORS_FILE, (entry.num_rows, vector_size)
        if path.stat().st_size != VECTOR_TYPE.itemsize * shape[0] * shape[1]:
            raise UserError(f"{path} is damaged: it doesn't have {shape[0]} vectors; {remedy}")
        with path.open("rb") as file:
            self.mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.vectors_RD: NDArray[np.float16] = np.frombuffer(self.mapping, VECTOR_TYPE).reshape(shape)
        self.recording_R: NDArray[np.int32] = self.rows["recording"].to_numpy()
        self.kinds_R: NDArray[np.uint8] = self.rows["kind"].to_numpy()  # PASSAGE, MOMENT or both
        self.is_removed_A = np.zeros(entry.num_recordings, bool)
        removed = self.read_removed()
        if problem := self.find_problem() or ("" if removed is not None else "the list of removed recordings"):
            raise UserError(f"{self.folder} is damaged: {problem} can't be right; {remedy}")
        self.is_removed_A[removed] = True

    def release_pages(self) -> None:
        """Remove the vectors that were read from this process' memory. The system keeps them in its cache while it has
        memory to spare.
        """
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            self.mapping.madvise(mmap.MADV_DONTNEED)

    def find_problem(self) -> str:
        """Return what can't be right in the tables; '' if nothing is."""
        recording_R, numbers = self.recording_R, (len(self.recordings), len(self.rows))
        if numbers != (self.entry.num_recordings, self.entry.num_rows):
            return "the number of recordings or rows"
        if not numbers[1] or (np.diff(recording_R) < 0).any() or recording_R[0] < 0 or recording_R[-1] >= numbers[0]:
            return "the recordings of rows"
        if not np.isin(self.kinds_R, (PASSAGE, MOMENT, PASSAGE | MOMENT)).all():
            return "the kinds of rows"
        times = [self.rows["start_s"], self.rows["end_s"], self.recordings["duration_s"]]
        return "" if all(np.isfinite(column.to_numpy()).all() for column in times) else "times of rows or recordings"

    def read_removed(self) -> NDArray[np.int32] | None:
        """Return the numbers of the removed recordings; None if they can't be right."""
        if not self.entry.num_removed:
            return np.zeros(0, np.int32)
        removed = np.fromfile(self.folder / name_removed_file(self.entry.num_removed), "<i4")
        is_right = (
            len(removed) == self.entry.num_removed and ((removed >= 0) & (removed < self.entry.num_recordings)).all()
        )
        return removed if is_right else None

    def find_rows(self, recording: int) -> slice:
        """Return the rows of a recording."""
        first, end = np.searchsorted(self.recording_R, [recording, recording + 1])
        return slice(int(first), int(end))

    def read_paths(self, numbers: Sequence[int]) -> list[str]:
        """Return the paths of some recordings."""
        paths: list[str] = self.recordings["path"].take(numbers).to_pylist()
        return paths

    def iter_recordings(self, numbers: Iterable[int]) -> Iterator[IndexedRecording]:
        """Yield recordings of this part with their vectors, to write them into another part."""
        starts_s, ends_s = self.rows["start_s"].to_numpy(), self.rows["end_s"].to_numpy()
        for number in numbers:
            (row,) = self.recordings.slice(number, 1).to_pylist()
            rows, row["captions"] = self.find_rows(number), tuple(row["captions"])
            yield IndexedRecording(
                IndexedFile(**{name: row[name] for name in FILE_COLUMNS}),
                row["duration_s"],
                row["peaks"],
                starts_s=starts_s[rows],
                ends_s=ends_s[rows],
                kinds=self.kinds_R[rows],
                vectors_RD=self.vectors_RD[rows],
            )


def write_part(folder: Path, recordings: Iterable[IndexedRecording], vector_size: int) -> PartEntry | None:
    """Write recordings into a new part of the index in `folder`, and return its entry for the manifest; None if there
    are no recordings. They are consumed one at a time; vectors are rounded to half precision.
    """
    name = secrets.token_hex(8)
    rows: dict[str, list[NDArray[np.generic]]] = {field: [] for field in ROWS_SCHEMA.names}
    columns: dict[str, list[object]] = {field: [] for field in RECORDINGS_SCHEMA.names}
    with create_scratch_folder(folder / PARTS) as scratch:
        staging = scratch / name
        staging.mkdir()
        with (staging / VECTORS_FILE).open("wb") as file:
            for number, recording in enumerate(recordings):
                file.write(np.ascontiguousarray(recording.vectors_RD, VECTOR_TYPE).tobytes())
                columns["id"].append(compute_id(recording.file.path))
                for name_of_column in FILE_COLUMNS:
                    columns[name_of_column].append(getattr(recording.file, name_of_column))
                columns["duration_s"].append(recording.duration_s)
                columns["peaks"].append(recording.peaks)
                rows["recording"].append(np.full(len(recording.kinds), number, np.int32))
                rows["start_s"].append(recording.starts_s)
                rows["end_s"].append(recording.ends_s)
                rows["kind"].append(recording.kinds)
        num_recordings = len(columns["id"])
        if not num_recordings:
            return None
        arrays = [pa.array(columns[field.name], field.type) for field in RECORDINGS_SCHEMA]
        write_arrow_table(staging / RECORDINGS_FILE, pa.table(arrays, schema=RECORDINGS_SCHEMA))
        joined = [pa.array(np.concatenate(rows[field.name]), field.type) for field in ROWS_SCHEMA]
        write_arrow_table(staging / ROWS_FILE, pa.table(joined, schema=ROWS_SCHEMA))
        rename_folder(staging, folder / PARTS / name)
    return PartEntry(name, num_recordings, len(joined[0]))


def remove_recordings(folder: Path, part: Part, numbers: Sequence[int]) -> PartEntry:
    """Mark recordings of a part as removed, and return the part's new entry for the manifest. The former file is kept
    for readers that have not opened it yet; it is removed with the part.
    """
    is_removed = part.is_removed_A.copy()
    is_removed[list(numbers)] = True
    removed = np.flatnonzero(is_removed).astype("<i4")
    with atomic_write(folder / PARTS / part.entry.name / name_removed_file(len(removed))) as temporary:
        removed.tofile(temporary)
    return replace(part.entry, num_removed=len(removed))


def name_removed_file(num_removed: int) -> str:
    """Return the name of the file that lists a part's removed recordings."""
    return f"removed-{num_removed}.bin"
