"""Reduced and quantised vectors, by which a large index finds candidates; their scores are then computed exactly.

The score of a query q and a row v is q . v. The mean m of the rows adds the same to all scores of a query, so rows are
centred. With the typical size t of each entry of a query, rows (v - m) * t are projected on their d first principal
components, and queries q / t likewise: the error of a score is then as small as d numbers allow for queries of this
form. FAISS stores each number of a projected row in 8 bits.

    reductions/NAME/projection.npz      mean [D], scale [D] and components [D, d], float32
    reductions/NAME/quantiser.faiss     quantiser, an index without rows
    parts/PART/codes-NAME/KIND.faiss    codes of the part's passages or moments

Shapes: R rows, D the size of the vectors, d the size of the reduced ones, Q queries.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from data.store.files import rename_folder
from data.store.scratch import create_scratch_folder
from ensemble.index.manifest import REDUCTIONS, ReductionEntry
from ensemble.index.parts import MOMENT, PASSAGE, Part

if TYPE_CHECKING:
    import faiss

Kind = Literal["passages", "moments"]
KIND_BITS: dict[Kind, int] = {"passages": PASSAGE, "moments": MOMENT}

REDUCED_SIZE = 256
"""Size of reduced vectors, d."""

NUM_SAMPLES = 8192
"""Maximum number of rows from which the components and the quantiser are computed."""

ENCODED_ROWS = 4096
"""Number of rows that are projected at a time."""

PROJECTION_FILE, QUANTISER_FILE = "projection.npz", "quantiser.faiss"


@dataclass(frozen=True)
class Reduction:
    """Projection of rows and queries to d dimensions, and a quantiser of projected rows."""

    name: str
    mean_D: NDArray[np.float32]
    scale_D: NDArray[np.float32]
    components_Dd: NDArray[np.float32]
    quantiser: faiss.Index

    def project_rows(self, vectors_RD: NDArray[Any]) -> NDArray[np.float32]:
        """Return projected rows [R, d]."""
        centred_RD: NDArray[np.float32] = vectors_RD.astype(np.float32) - self.mean_D
        return np.asarray((centred_RD * self.scale_D) @ self.components_Dd, np.float32)

    def project_queries(self, vectors_QD: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return projected queries [Q, d]."""
        return np.ascontiguousarray((vectors_QD / self.scale_D) @ self.components_Dd)


def compute_reduction(folder: Path, parts: list[Part], scale_D: NDArray[np.float32]) -> ReductionEntry:
    """Compute the reduction of an index from a sample of the rows of its parts, write it, and return its entry for the
    manifest. `scale_D` is the typical size of each entry of a query.
    """
    import faiss
    import torch

    sizes = [part.entry.num_rows for part in parts]
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.choice(sum(sizes), min(NUM_SAMPLES, sum(sizes)), replace=False))
    firsts = np.cumsum([0, *sizes])
    sample_RD = np.concatenate(
        [
            part.vectors_RD[chosen[(chosen >= first) & (chosen < first + size)] - first].astype(np.float32)
            for part, first, size in zip(parts, firsts[:-1], sizes, strict=True)
        ]
    )
    mean_D = sample_RD.mean(axis=0)
    centred_RD = (sample_RD - mean_D) * scale_D
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        size = min(REDUCED_SIZE, *centred_RD.shape)
        components_Dd = torch.pca_lowrank(torch.from_numpy(centred_RD), q=size, center=False, niter=2)[2].numpy()
    quantiser = faiss.IndexScalarQuantizer(size, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    quantiser.train(centred_RD @ components_Dd)
    name = secrets.token_hex(8)
    with create_scratch_folder(folder / REDUCTIONS) as scratch:
        staging = scratch / name
        staging.mkdir()
        np.savez(staging / PROJECTION_FILE, mean=mean_D, scale=scale_D, components=components_Dd)
        faiss.write_index(quantiser, str(staging / QUANTISER_FILE))
        rename_folder(staging, folder / REDUCTIONS / name)
    return ReductionEntry(name, sum(sizes))


def open_reduction(folder: Path, entry: ReductionEntry) -> Reduction:
    """Return the reduction of the index in `folder` that its manifest names."""
    import faiss

    location = folder / REDUCTIONS / entry.name
    with np.load(location / PROJECTION_FILE) as arrays:
        mean_D, scale_D, components_Dd = (arrays[name] for name in ("mean", "scale", "components"))
    return Reduction(entry.name, mean_D, scale_D, components_Dd, faiss.read_index(str(location / QUANTISER_FILE)))


def list_kind_rows(part: Part, kind: Kind) -> NDArray[np.int64]:
    """Return the rows of a part that are passages, or moments."""
    return np.flatnonzero(part.kinds_R & KIND_BITS[kind])


def locate_codes(part: Part, reduction: str) -> Path:
    """Return the folder of a part's codes by a reduction."""
    return part.folder / f"codes-{reduction}"


def write_codes(part: Part, reduction: Reduction) -> None:
    """Write the codes of a part by a reduction, unless they exist."""
    import faiss

    target = locate_codes(part, reduction.name)
    if target.exists():
        return
    with create_scratch_folder(part.folder) as scratch:
        staging = scratch / target.name
        staging.mkdir()
        for kind in KIND_BITS:
            codes, rows = faiss.clone_index(reduction.quantiser), list_kind_rows(part, kind)
            for first in range(0, len(rows), ENCODED_ROWS):
                codes.add(reduction.project_rows(part.vectors_RD[rows[first : first + ENCODED_ROWS]]))
            faiss.write_index(codes, str(staging / f"{kind}.faiss"))
        rename_folder(staging, target)


def open_codes(part: Part, reduction: str, kind: Kind) -> faiss.Index | None:
    """Return the codes of a part's passages or moments by a reduction; None if they have not been written."""
    import faiss

    path = locate_codes(part, reduction) / f"{kind}.faiss"
    return faiss.read_index(str(path)) if path.exists() else None
