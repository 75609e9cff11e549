"""Opened index: recordings, and the search for the rows with the highest scores.

The scores of all rows are computed while the vectors fit into EXACT_BYTES of memory. Beyond that, FAISS finds
candidates by reduced vectors, and the candidates' scores are computed exactly from the memory-mapped vectors.

Recordings and rows of all parts are numbered consecutively. Shapes: A recordings, R rows, D the size of the vectors, Q
queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from data.errors import UserError
from ensemble.index.former import convert_former_index
from ensemble.index.manifest import Manifest, read_manifest
from ensemble.index.parts import Part
from ensemble.index.reduction import KIND_BITS, Kind, Reduction, list_kind_rows, open_codes, open_reduction

if TYPE_CHECKING:
    import faiss

EXACT_BYTES = 512 * 2**20
"""Maximum size of all vectors in single precision for exact search."""

MIN_CANDIDATES = 1000
CANDIDATES_PER_RESULT = 20
BLOCK_ROWS = 8192
"""Number of vectors that are converted to single precision at a time."""

NUM_OPENING_ATTEMPTS = 5

Scalar = TypeVar("Scalar", bound=np.generic)

ScoredRows = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Rows in ascending order, and their scores."""


def is_small(num_rows: int, vector_size: int) -> bool:
    """Return whether an index with this number of rows is searched exactly."""
    return num_rows * vector_size * np.dtype(np.float32).itemsize <= EXACT_BYTES


class OpenedIndex:
    """Index of recordings, opened. It stays as it is while another process changes the index.

    Args:
        folder: the folder of the index.
        manifest: its contents.

    Raises:
        FileNotFoundError: if a writer has replaced a part.
        UserError: if a file is damaged.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.parts = [Part(folder, entry, manifest.vector_size) for entry in manifest.parts]
        self.first_recordings = np.cumsum([0, *(part.entry.num_recordings for part in self.parts)])
        self.first_rows = np.cumsum([0, *(part.entry.num_rows for part in self.parts)])
        self.is_removed_A = join([part.is_removed_A for part in self.parts], np.bool_)
        self.id_A = join([part.recordings["id"].to_numpy() for part in self.parts], np.uint64)
        self.duration_A = join([part.recordings["duration_s"].to_numpy() for part in self.parts], np.float64)
        self.recording_R = join(
            [part.recording_R + first for part, first in zip(self.parts, self.first_recordings, strict=False)], np.int64
        )
        self.kinds_R = join([part.kinds_R for part in self.parts], np.uint8)
        self.start_R = join([part.rows["start_s"].to_numpy() for part in self.parts], np.float32)
        self.end_R = join([part.rows["end_s"].to_numpy() for part in self.parts], np.float32)
        self.reduction: Reduction | None = None
        if manifest.reduction and not is_small(manifest.num_rows, manifest.vector_size):
            self.reduction = open_reduction(folder, manifest.reduction, manifest.vector_size)
            codes = {kind: [open_codes(part, self.reduction, kind) for part in self.parts] for kind in KIND_BITS}
            self.codes = {kind: [one for one in codes[kind] if one is not None] for kind in KIND_BITS}
            if any(len(self.codes[kind]) < len(self.parts) for kind in KIND_BITS):
                self.reduction = None

    def __len__(self) -> int:
        """Return the number of recordings."""
        return self.manifest.num_recordings

    def describe_search(self) -> str:
        """Return a sentence on how the index is searched, and why."""
        num_rows, size = self.manifest.num_rows, self.manifest.vector_size
        mib = num_rows * size * 4 / 2**20
        stated = f"{num_rows:,} vectors of {size:,} numbers ({mib:,.0f} MiB)"
        if is_small(num_rows, size):
            return f"exact search: {stated}, at most {EXACT_BYTES // 2**20} MiB"
        if self.reduction is None:
            return (
                f"exact search from disk, which is slow: {stated}; --add again to prepare the index for faster search"
            )
        return f"approximate search with exact scores: {stated}, more than {EXACT_BYTES // 2**20} MiB"

    def locate(self, recording: int) -> tuple[Part, int]:
        """Return the part of a recording, and the recording's number in it."""
        number = int(np.searchsorted(self.first_recordings, recording, side="right")) - 1
        return self.parts[number], recording - int(self.first_recordings[number])

    @cached_property
    def ids_in_order(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Ids of the recordings that aren't removed in ascending order, and the numbers of these recordings."""
        present = np.flatnonzero(~self.is_removed_A)
        order = present[np.argsort(self.id_A[present], kind="stable")]
        return self.id_A[order], order

    def find_recordings(self, recording_ids: Sequence[int]) -> list[int | None]:
        """Return the numbers of the recordings with ids (`ensemble.index.parts.compute_id`); None for those that the
        index doesn't have.
        """
        ids, order = self.ids_in_order
        searched = np.array(recording_ids, np.uint64)
        positions = np.searchsorted(ids, searched)
        is_present = positions < np.searchsorted(ids, searched, side="right")
        return [
            int(order[position]) if present else None for position, present in zip(positions, is_present, strict=True)
        ]

    def load_rows(self, rows_R: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of rows in ascending order [R, D]. Raises UserError if they aren't finite."""
        loaded_RD = np.empty((len(rows_R), self.manifest.vector_size), np.float32)
        bounds = np.searchsorted(rows_R, self.first_rows)
        for part, first_row, first, end in zip(self.parts, self.first_rows, bounds, bounds[1:], strict=False):
            if end > first:
                loaded_RD[first:end] = part.vectors_RD[rows_R[first:end] - first_row]
                part.release_pages()
        if not np.isfinite(loaded_RD).all():
            raise UserError(f"{self.folder} is damaged: vectors aren't finite; remove it, and --add again")
        return loaded_RD

    @cached_property
    def matrix(self) -> NDArray[np.float32]:
        """Vectors of all rows in memory [R, D], for exact search."""
        return self.load_rows(np.arange(self.manifest.num_rows))

    @cached_property
    def code_indexes(self) -> dict[Kind, list[faiss.Index]]:
        """FAISS indexes of the codes of each part, in memory, for approximate search; none for exact search."""
        if self.reduction is None:
            return {}
        return {kind: [self.reduction.build_index(codes) for codes in self.codes[kind]] for kind in KIND_BITS}

    def prepare(self) -> None:
        """Read into memory what the search needs, so that the first one is as fast as all others. An index that is
        searched from disk stays there. Raises UserError if vectors aren't finite.
        """
        _ = self.matrix if is_small(self.manifest.num_rows, self.manifest.vector_size) else self.code_indexes

    def select_rows(self, kind: Kind, is_accepted_A: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
        """Return which rows are of a kind, and of recordings that are accepted and not removed [R]."""
        accepted_A = ~self.is_removed_A if is_accepted_A is None else is_accepted_A & ~self.is_removed_A
        is_selected_R = (self.kinds_R & KIND_BITS[kind]).astype(bool)
        if not accepted_A.all():
            is_selected_R &= accepted_A[self.recording_R]
        return is_selected_R

    def score(
        self, kind: Kind, vectors_QD: NDArray[np.float32], num: int, is_accepted_A: NDArray[np.bool_] | None = None
    ) -> list[ScoredRows]:
        """Return rows of a kind with their scores for each query, among them those with the `num` highest scores: all
        rows in an exact search, candidates in an approximate one.

        Args:
            kind: passages or moments.
            vectors_QD: the vectors of the queries.
            num: number of rows with the highest scores that must be among them.
            is_accepted_A: which recordings to search; None for all.
        """
        is_selected_R = self.select_rows(kind, is_accepted_A)
        num_candidates = max(MIN_CANDIDATES, CANDIDATES_PER_RESULT * num)
        if self.reduction is None or np.count_nonzero(is_selected_R) <= num_candidates:
            return self.score_exactly(np.flatnonzero(is_selected_R), vectors_QD)
        candidates = self.find_candidates(kind, vectors_QD, num_candidates, is_selected_R)
        return [(rows, self.load_rows(rows) @ vector_D) for rows, vector_D in zip(candidates, vectors_QD, strict=True)]

    def score_exactly(self, rows_R: NDArray[np.int64], vectors_QD: NDArray[np.float32]) -> list[ScoredRows]:
        """Return some rows with their scores for each query."""
        if is_small(self.manifest.num_rows, self.manifest.vector_size):
            scores_QR = vectors_QD @ self.matrix.T
            return [(rows_R, scores_R[rows_R]) for scores_R in scores_QR]
        blocks = [rows_R[first : first + BLOCK_ROWS] for first in range(0, len(rows_R), BLOCK_ROWS)]
        scores_QR = np.concatenate(
            [np.zeros((len(vectors_QD), 0), np.float32), *(vectors_QD @ self.load_rows(rows).T for rows in blocks)],
            axis=1,
        )
        return [(rows_R, scores_R) for scores_R in scores_QR]

    def find_candidates(
        self, kind: Kind, vectors_QD: NDArray[np.float32], num: int, is_selected_R: NDArray[np.bool_]
    ) -> list[NDArray[np.int64]]:
        """Return, for each query, the rows with the `num` highest scores of reduced vectors, in ascending order.
        `is_selected_R` says which rows to search; they are of this kind.
        """
        import faiss

        assert self.reduction is not None
        reduced_Qd = self.reduction.project_queries(vectors_QD)
        rows, scores = [], []
        for part, first_row, codes in zip(self.parts, self.first_rows, self.code_indexes[kind], strict=False):
            kind_rows = list_kind_rows(part, kind) + first_row
            is_searched = is_selected_R[kind_rows]
            if not is_searched.any():
                continue
            # The selector refers to the array of bits, which must exist during the search.
            bits = np.packbits(is_searched, bitorder="little")
            selector = faiss.IDSelectorBitmap(bits)  # type: ignore[call-arg, arg-type]  # its types are C++'s
            selection = None if is_searched.all() else faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
            part_scores, numbers = codes.search(reduced_Qd, min(num, len(kind_rows)), params=selection)
            rows.append(np.where(numbers >= 0, kind_rows[numbers], -1))
            scores.append(np.where(numbers >= 0, part_scores, -np.inf))
        rows_QR, scores_QR = np.concatenate(rows, axis=1), np.concatenate(scores, axis=1)
        best_QR = np.argsort(-scores_QR, axis=1)[:, :num]
        chosen = (rows[best] for rows, best in zip(rows_QR, best_QR, strict=True))
        return [np.sort(rows[rows >= 0]) for rows in chosen]

    def score_recordings(
        self, vectors_QD: NDArray[np.float32], k: int, is_accepted_A: NDArray[np.bool_] | None = None
    ) -> list[ScoredRows]:
        """Return recordings with the scores of their best passages for each query, among them the `k` with the highest
        scores. The arguments are those of `score`.
        """
        num = k
        while True:
            scored = self.score("passages", vectors_QD, num, is_accepted_A)
            best = [self.reduce_to_recordings(rows, scores) for rows, scores in scored]
            is_complete = self.reduction is None or num >= self.manifest.num_rows
            if is_complete or all(len(recordings) >= k for recordings, _ in best):
                return best
            num *= 4

    def reduce_to_recordings(self, rows_R: NDArray[np.int64], scores_R: NDArray[np.float32]) -> ScoredRows:
        """Return the recordings of rows in ascending order, and the highest score of each one's rows."""
        recordings_R = self.recording_R[rows_R]
        starts = np.flatnonzero(np.diff(recordings_R, prepend=-1))
        if not len(starts):
            return recordings_R, scores_R
        return recordings_R[starts], np.maximum.reduceat(scores_R, starts)

    def find_rows(self, recording: int, kind: Kind) -> NDArray[np.int64]:
        """Return the rows of a recording that are passages, or moments."""
        first, end = np.searchsorted(self.recording_R, [recording, recording + 1]).tolist()
        rows: NDArray[np.int64] = first + np.flatnonzero(self.kinds_R[first:end] & KIND_BITS[kind])
        return rows

    def read_intervals(self, rows_R: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the start and end in seconds of rows [R, 2]."""
        return np.stack([self.start_R[rows_R], self.end_R[rows_R]], axis=1)

    def iter_numbers_by_part(self, recordings: Sequence[int]) -> Iterator[tuple[Part, list[int]]]:
        """Yield each part that has some of these recordings, and their numbers in it."""
        ordered = np.sort(np.asarray(recordings, np.int64))
        bounds = np.searchsorted(ordered, self.first_recordings)
        for part, first_recording, first, end in zip(
            self.parts, self.first_recordings, bounds, bounds[1:], strict=False
        ):
            if end > first:
                yield part, (ordered[first:end] - first_recording).tolist()


def join(arrays: Sequence[NDArray[Any]], dtype: type[Scalar]) -> NDArray[Scalar]:
    """Return arrays of this type joined, also if there are none."""
    return np.concatenate([np.zeros(0, dtype), *arrays])


def open_index(folder: Path) -> OpenedIndex | None:
    """Return the index in a folder, opened, or None if the folder has none. If a writer replaces parts meanwhile, the
    index is opened again. An index of format version 1 is converted.

    Raises UserError if it is damaged.
    """
    for attempt in range(NUM_OPENING_ATTEMPTS):
        try:
            convert_former_index(folder)
            manifest = read_manifest(folder)
            return OpenedIndex(folder, manifest) if manifest else None
        except FileNotFoundError:
            if attempt == NUM_OPENING_ATTEMPTS - 1:
                raise
    return None


def choose_best(scored: ScoredRows, k: int) -> ScoredRows:
    """Return the rows with the `k` highest scores, and all others with the same score as the last of them."""
    rows_R, scores_R = scored
    if len(rows_R) <= k:
        return scored
    is_chosen = scores_R >= np.partition(scores_R, -k)[-k]
    return rows_R[is_chosen], scores_R[is_chosen]
