"""Reduced and quantised vectors, by which a large index finds candidates; their scores are then computed exactly.

The score of a query q and a row v is q . v. The mean m of the rows adds the same to all scores of a query, so rows are
centred. With the typical size t of each entry of a query, rows (v - m) * t are projected on their d first principal
components, and queries q / t likewise: the error of a score is then as small as d numbers allow for queries of this
form. FAISS quantises each number of a projected row to 8 bits, and searches the codes. The files are plain arrays:
FAISS reads its own files without the checks that a stranger's files need.

    reductions/NAME/reduction.safetensors    mean [D], scale [D], components [D, d] and quantiser, float32
    parts/PART/codes-NAME/KIND.bin           codes of the part's passages or moments, uint8 [R, d] without a header

Shapes: R rows, D the size of the vectors, d the size of the reduced ones, Q queries.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from data.errors import UserError
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

REDUCTION_FILE = "reduction.safetensors"
TENSORS = ("mean", "scale", "components", "quantiser")


@dataclass(frozen=True)
class Reduction:
    """Projection of rows and queries to d dimensions, and a quantiser of projected rows."""

    name: str
    mean_D: NDArray[np.float32]
    scale_D: NDArray[np.float32]
    components_Dd: NDArray[np.float32]
    quantiser: NDArray[np.float32]  # parameters of the quantiser

    def build_quantiser(self) -> faiss.IndexScalarQuantizer:
        """Return an index without rows, whose quantiser has the parameters."""
        import faiss

        index = make_quantiser(self.components_Dd.shape[1])
        faiss.copy_array_to_vector(self.quantiser, index.sq.trained)
        index.is_trained = True
        return index

    def build_index(self, codes_Rd: NDArray[np.uint8]) -> faiss.Index:
        """Return an index of rows with these codes, which it copies."""
        index = self.build_quantiser()
        index.add_sa_codes(codes_Rd)
        return index

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
    quantiser = make_quantiser(size)
    quantiser.train(centred_RD @ components_Dd)
    tensors = {"mean": mean_D, "scale": scale_D, "components": np.ascontiguousarray(components_Dd),
               "quantiser": faiss.vector_to_array(quantiser.sq.trained)}  # fmt: skip
    name = secrets.token_hex(8)
    with create_scratch_folder(folder / REDUCTIONS) as scratch:
        staging = scratch / name
        staging.mkdir()
        save_file(tensors, staging / REDUCTION_FILE)
        rename_folder(staging, folder / REDUCTIONS / name)
    return ReductionEntry(name, sum(sizes))


def make_quantiser(size: int) -> faiss.IndexScalarQuantizer:
    """Return an untrained index of reduced vectors of this size."""
    import faiss

    return faiss.IndexScalarQuantizer(size, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)


def open_reduction(folder: Path, entry: ReductionEntry, vector_size: int) -> Reduction:
    """Return the reduction of the index in `folder` that its manifest names. Raises UserError if it is damaged."""
    path = folder / REDUCTIONS / entry.name / REDUCTION_FILE
    try:
        tensors = load_file(path)
        mean_D, scale_D, components_Dd, quantiser = (tensors[name] for name in TENSORS)
        size = components_Dd.shape[-1]
        shapes = [tensor.shape for tensor in (mean_D, scale_D, components_Dd, quantiser)]
        is_right = shapes == [(vector_size,), (vector_size,), (vector_size, size), (2 * size,)] and all(
            tensor.dtype == np.float32 and np.isfinite(tensor).all() for tensor in tensors.values()
        )
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, KeyError, IndexError) as error:
        raise UserError(f"{path} is damaged: {error}; remove {folder}, and --add the recordings again") from error
    if not is_right or not (scale_D > 0).all():
        raise UserError(f"{path} is damaged: its shapes or numbers can't be right; remove {folder}, and --add again")
    return Reduction(entry.name, mean_D, scale_D, components_Dd, quantiser)


def list_kind_rows(part: Part, kind: Kind) -> NDArray[np.int64]:
    """Return the rows of a part that are passages, or moments."""
    return np.flatnonzero(part.kinds_R & KIND_BITS[kind])


def locate_codes(part: Part, reduction: str) -> Path:
    """Return the folder of a part's codes by a reduction."""
    return part.folder / f"codes-{reduction}"


def write_codes(part: Part, reduction: Reduction) -> None:
    """Write the codes of a part by a reduction, unless they exist."""
    target = locate_codes(part, reduction.name)
    if target.exists():
        return
    quantiser = reduction.build_quantiser()
    with create_scratch_folder(part.folder) as scratch:
        staging = scratch / target.name
        staging.mkdir()
        for kind in KIND_BITS:
            rows = list_kind_rows(part, kind)
            with (staging / f"{kind}.bin").open("wb") as file:
                for first in range(0, len(rows), ENCODED_ROWS):
                    projected = reduction.project_rows(part.vectors_RD[rows[first : first + ENCODED_ROWS]])
                    file.write(quantiser.sa_encode(np.ascontiguousarray(projected)).tobytes())
                    part.release_pages()
        rename_folder(staging, target)


def open_codes(part: Part, reduction: Reduction, kind: Kind) -> NDArray[np.uint8] | None:
    """Return the codes of a part's passages or moments by a reduction, memory-mapped [R, d]; None if they have not been
    written, or their number is wrong.
    """
    path, size = locate_codes(part, reduction.name) / f"{kind}.bin", reduction.components_Dd.shape[1]
    num_rows = len(list_kind_rows(part, kind))
    if not path.exists() or path.stat().st_size != num_rows * size:
        return None
    if not num_rows:
        return np.zeros((0, size), np.uint8)
    return np.memmap(path, np.uint8, "r", shape=(num_rows, size))
