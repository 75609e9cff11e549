"""Part of an index: recordings, and vectors of their passages and moments. A part is written once, and never changed.

    NAME/recordings.arrow     path, stamp, duration, captions and waveform of each recording
    NAME/rows.arrow           recording, start, end and kind of each vector
    NAME/vectors.bin          float16 [R, D] without a header, memory-mapped
    NAME/removed-N.npy        numbers of removed recordings, int32; the manifest names the current file

A passage is what the ensemble embeds as one clip; a moment is one segment of it. A passage of one segment is a moment,
too, and has one row. Rows are sorted by recording.

Shapes: A recordings, R rows, D the size of the vectors.
"""

import hashlib
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class IndexedRecording:
    """Recording to write into a part, with its rows."""

    path: str
    root: str  # folder that was added
    size: int
    mtime_ns: int
    sha256: bytes
    duration_s: float
    captions: tuple[str, ...]
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
        self.recordings = open_table(path, str(path), remedy, RECORDINGS_SCHEMA, unread="peaks")
        path = self.folder / ROWS_FILE
        self.rows = open_table(path, str(path), remedy, ROWS_SCHEMA)
        path, shape = self.folder / VECTORS_FILE, (entry.num_rows, vector_size)
        if path.stat().st_size != VECTOR_TYPE.itemsize * shape[0] * shape[1] or len(self.rows) != shape[0]:
            raise UserError(f"{self.folder} is damaged: it doesn't have {shape[0]} vectors; {remedy}")
        self.vectors_RD: NDArray[np.float16] = np.memmap(path, VECTOR_TYPE, "r", shape=shape)
        self.recording_R: NDArray[np.int32] = self.rows["recording"].to_numpy()
        self.is_removed_A = np.zeros(entry.num_recordings, bool)
        if entry.removed:
            self.is_removed_A[np.load(self.folder / entry.removed)] = True
        self.kinds_R: NDArray[np.uint8] = self.rows["kind"].to_numpy()  # PASSAGE, MOMENT or both
        recording_R = self.recording_R
        if len(self.recordings) != entry.num_recordings or (np.diff(recording_R) < 0).any() or (
            len(recording_R) and not 0 <= recording_R[0] <= recording_R[-1] < entry.num_recordings
        ):  # fmt: skip
            raise UserError(f"{self.folder} is damaged: its rows don't match its recordings; {remedy}")

    def find_rows(self, recording: int) -> slice:
        """Return the rows of a recording."""
        first, end = np.searchsorted(self.recording_R, [recording, recording + 1])
        return slice(int(first), int(end))

    def iter_recordings(self, numbers: Iterable[int]) -> Iterator[IndexedRecording]:
        """Yield recordings of this part with their vectors, to write them into another part."""
        starts_s, ends_s = self.rows["start_s"].to_numpy(), self.rows["end_s"].to_numpy()
        for number in numbers:
            (row,) = self.recordings.slice(number, 1).to_pylist()
            rows = self.find_rows(number)
            del row["id"]
            yield IndexedRecording(
                **row | {"captions": tuple(row["captions"])},
                starts_s=starts_s[rows],
                ends_s=ends_s[rows],
                kinds=self.kinds_R[rows],
                vectors_RD=self.vectors_RD[rows],
            )


def write_part(folder: Path, recordings: Iterable[IndexedRecording], vector_size: int) -> PartEntry:
    """Write recordings into a new part of the index in `folder`, and return its entry for the manifest. The recordings
    are consumed one at a time; vectors are rounded to half precision.
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
                columns["id"].append(compute_id(recording.path))
                for field in RECORDINGS_SCHEMA.names[1:]:
                    columns[field].append(getattr(recording, field))
                rows["recording"].append(np.full(len(recording.kinds), number, np.int32))
                rows["start_s"].append(recording.starts_s)
                rows["end_s"].append(recording.ends_s)
                rows["kind"].append(recording.kinds)
        num_recordings = len(columns["id"])
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
    removed = np.flatnonzero(is_removed).astype(np.int32)
    name = f"removed-{len(removed)}.npy"
    with atomic_write(folder / PARTS / part.entry.name / name) as temporary, temporary.open("wb") as file:
        np.save(file, removed)
    return PartEntry(part.entry.name, part.entry.num_recordings, part.entry.num_rows, name, len(removed))
