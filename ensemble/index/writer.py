"""Changes of an index: parts are added, recordings marked as removed, and parts of similar size merged.

A part is merged with the one before it when it has at least as many rows, so that sizes grow geometrically from the
newest part to the oldest, and adding recordings to a large index takes time in proportion to what is added.
"""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble.index.manifest import Manifest, PartEntry, ReductionEntry, write_manifest
from ensemble.index.parts import IndexedRecording, Part, remove_recordings, write_part
from ensemble.index.reduction import compute_reduction, open_reduction, write_codes
from ensemble.index.vector_search import OpenedIndex, is_small, open_index

logger = logging.getLogger("chorale.recordings")

GROWTH_BEFORE_REDUCTION = 4
"""Growth of the number of rows after which the reduction is computed again."""


class IndexWriter:
    """Writer of an index, whose folder must be locked.

    Args:
        folder: the folder of the index.
        signature: the signature of the ensemble.
        scale_D: the typical size of each entry of a query.
    """

    def __init__(self, folder: Path, signature: str, scale_D: NDArray[np.float32]) -> None:
        self.folder, self.scale_D = folder, scale_D
        index = open_index(folder)
        self.index = index or OpenedIndex(folder, Manifest(signature, len(scale_D)))

    def commit(self, added: Sequence[IndexedRecording], removed: Sequence[int]) -> None:
        """Add recordings, and remove those with these numbers, in one step: a reader sees both or neither."""
        manifest = self.index.manifest
        changed = {
            part.entry.name: remove_recordings(self.folder, part, numbers)
            for part, numbers in self.index.iter_numbers_by_part(removed)
        }
        entries = [changed.get(entry.name, entry) for entry in manifest.parts]
        if added:
            entries.append(write_part(self.folder, added, manifest.vector_size))
        self.write(self.merge_parts(entries), manifest.reduction)

    def write(self, entries: Sequence[PartEntry], reduction: ReductionEntry | None) -> None:
        """Write the manifest, and open the index again."""
        manifest = dataclasses.replace(self.index.manifest, parts=tuple(entries), reduction=reduction)
        write_manifest(self.folder, manifest)
        self.index = OpenedIndex(self.folder, manifest)

    def merge_parts(self, entries: Sequence[PartEntry]) -> list[PartEntry]:
        """Return the parts after those of similar size were merged, without parts whose recordings are all removed. A
        part with more removed recordings than others is written again.
        """
        merged: list[PartEntry] = []
        for entry in entries:
            if entry.num_removed == entry.num_recordings:
                continue
            merged.append(self.merge([entry]) if 2 * entry.num_removed > entry.num_recordings else entry)
        while len(merged) > 1 and merged[-2].num_rows <= merged[-1].num_rows:
            merged[-2:] = [self.merge(merged[-2:])]
        return merged

    def merge(self, entries: Sequence[PartEntry]) -> PartEntry:
        """Write the recordings of some parts that are not removed into a new part, and return its entry."""
        return write_part(self.folder, self.iter_recordings(entries), self.index.manifest.vector_size)

    def iter_recordings(self, entries: Sequence[PartEntry]) -> Iterator[IndexedRecording]:
        """Yield the recordings of some parts that are not removed."""
        for entry in entries:
            part = Part(self.folder, entry, self.index.manifest.vector_size)
            yield from part.iter_recordings(np.flatnonzero(~part.is_removed_A).tolist())

    def prepare_search(self) -> None:
        """Compute the reduction and the codes that the search of a large index needs, unless they exist. A small index
        has none.
        """
        manifest = self.index.manifest
        if is_small(manifest.num_rows, manifest.vector_size):
            return
        entry = manifest.reduction
        if entry is None or manifest.num_rows > GROWTH_BEFORE_REDUCTION * entry.num_rows:
            logger.info("%s: computing reduced vectors", self.folder)
            entry = compute_reduction(self.folder, self.index.parts, self.scale_D)
        reduction = open_reduction(self.folder, entry)
        for part in self.index.parts:
            write_codes(part, reduction)
        self.write(manifest.parts, entry)
