"""Score matrices of many candidates, read one block of queries at a time: a pool may be larger than memory.

Scores are float32: float16 is widened and float64 is rounded. Sums of float32 scores in float64 do not depend on the
order of summation, so selections do not depend on the order of the pool.

Shapes: M candidates, Q queries, A clips. Scores are [Q, A], higher is better.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import UserError, unknown_name_error
from trainables.records.ensemble_file import BANK_FUSIONS
from trainables.retrieval import Relevance

BLOCK_BYTES = 2**25
"""Maximum size of a block of all candidates' scores, if they have to be converted or computed."""

BLOCK_BYTES_TRANSPOSED = 2**27
"""Maximum size of a block in audio-to-text direction, for which a file is read once per block."""

Scores = NDArray[np.float32]

ReadScores = Callable[[int, int], Scores]
"""Function from the first and the last query (exclusive) to a candidate's scores [last - first, A].

A function that reads by clips takes the first and the last clip, and returns [last - first, Q].
"""

Transform = Callable[[Scores], Scores]
"""Function from scores [q, A] to scores [q, A] that transforms each query's scores independently."""


@dataclass(frozen=True)
class Block:
    """Scores of some queries by all candidates."""

    first_query: int
    last_query: int
    scores: Sequence[Scores]  # for each candidate [last_query - first_query, A], contiguous in memory


@dataclass(frozen=True)
class ScoreMatrices:
    """Scores of the same queries and clips by several candidates.

    `arrays` holds the matrices if they can be used without conversion; otherwise `reads` returns them block by block.
    `across` returns blocks of clips, for the audio-to-text direction.
    """

    names: tuple[str, ...]
    split: str
    fingerprint: str
    relevance: Relevance
    num_clips: int
    reads: tuple[ReadScores, ...]
    across: tuple[ReadScores, ...] = ()
    arrays: tuple[Scores, ...] = ()
    block_bytes: int = BLOCK_BYTES

    def __post_init__(self) -> None:
        if not self.names:
            raise UserError("there are no candidates to select from")

    @property
    def num_queries(self) -> int:
        """Number of queries, Q."""
        return self.relevance.num_queries

    def iter_blocks(self) -> Iterator[Block]:
        """Yield the scores of all queries in order, in blocks of at most `block_bytes`. If `arrays` is given, all
        queries are one block.
        """
        if self.arrays:
            yield Block(0, self.num_queries, self.arrays)
            return
        query_bytes = len(self.names) * self.num_clips * np.dtype(np.float32).itemsize
        size = max(1, self.block_bytes // query_bytes)
        for first in range(0, self.num_queries, size):
            last = min(first + size, self.num_queries)
            yield Block(first, last, [np.ascontiguousarray(read(first, last)) for read in self.reads])

    def read_scores(self, model: int) -> Scores:
        """Return the scores [Q, A] of the candidate with index `model`."""
        return self.arrays[model] if self.arrays else self.reads[model](0, self.num_queries)

    def select(self, models: Sequence[int]) -> "ScoreMatrices":
        """Return a pool of the candidates with these indices, in this order."""
        return ScoreMatrices(
            tuple(self.names[model] for model in models), self.split, self.fingerprint, self.relevance, self.num_clips,
            tuple(self.reads[model] for model in models),
            tuple(self.across[model] for model in models if self.across),
            tuple(self.arrays[model] for model in models if self.arrays), self.block_bytes,
        )  # fmt: skip


def from_arrays(
    names: Sequence[str], split: str, fingerprint: str, relevant: Relevance, arrays: Sequence[NDArray[Any]]
) -> ScoreMatrices:
    """Return a pool of the score matrices in `arrays` [Q, A], one for each candidate in `names`, which are in memory or
    memory-mapped. `split` and `fingerprint` identify the split; `relevant` has its relevant clips.

    Args:
        names: names of the candidates.
        split: name of the split.
        fingerprint: fingerprint of the split.
        relevant: relevant clips of the queries.
        arrays: each candidate's scores, float16, float32 or float64.
    """
    need_no_conversion = all(array.dtype == np.float32 and array.flags.c_contiguous for array in arrays)

    def make_reader(name: str, array: NDArray[Any]) -> ReadScores:
        return lambda first, last: to_float32(array[first:last], name)

    return ScoreMatrices(
        tuple(names), split, fingerprint, relevant, arrays[0].shape[1] if arrays else 0,
        tuple(map(make_reader, names, arrays)), tuple(map(make_reader, names, [array.T for array in arrays])),
        tuple(arrays) if need_no_conversion else (),
    )  # fmt: skip


def to_float32(scores: NDArray[Any], name: str) -> Scores:
    """Return scores as float32; values that are too large become infinite.

    Raises UserError if a value other than 0 would become 0.
    """
    with np.errstate(over="ignore", under="ignore"):
        converted = scores.astype(np.float32, copy=False)
    if scores.dtype == np.float64 and np.any((converted == 0) & (scores != 0)):
        raise UserError(f"{name} has scores too close to 0 for float32: rescale them, or use their logarithms")
    return converted


def apply_fusion(pool: ScoreMatrices, fusion: str) -> ScoreMatrices:
    """Return the pool with each query's scores transformed as the fusion requires: z-norms for 'zscore', ranks for
    'rank'. For the other fusions it is unchanged: 'mean', and those by a query bank, which extend the embeddings.

    Raises UserError that lists the known fusions for an unknown name.
    """
    if fusion not in FUSIONS:
        raise unknown_name_error("fusion", fusion, sorted(FUSIONS))
    transform = FUSIONS[fusion]
    if transform is None:
        return pool

    def make_reader(read: ReadScores) -> ReadScores:
        return lambda first, last: transform(read(first, last))

    return ScoreMatrices(
        pool.names, pool.split, pool.fingerprint, pool.relevance, pool.num_clips, tuple(map(make_reader, pool.reads)),
        block_bytes=pool.block_bytes,
    )  # fmt: skip


def z_norm(scores_QA: Scores) -> Scores:
    """Return each query's scores, shifted and scaled to mean 0 and standard deviation 1; all 0 if they are equal."""
    wide = scores_QA.astype(np.float64)
    deviation = wide.std(axis=1, keepdims=True)
    normed: Scores = ((wide - wide.mean(axis=1, keepdims=True)) / np.where(deviation > 0, deviation, 1)).astype(
        np.float32
    )
    return normed


def rank_transform(scores_QA: Scores) -> Scores:
    """Return the rank of each score among those of its query in float32, from 1 for the lowest. Equal scores have the
    mean of their ranks.
    """
    from scipy.stats import rankdata

    ranked: Scores = rankdata(scores_QA, axis=1).astype(np.float32)
    return ranked


FUSIONS: dict[str, Transform | None] = {
    "mean": None,
    "zscore": z_norm,
    "rank": rank_transform,
    **dict.fromkeys(BANK_FUSIONS),
}
"""Transforms by the name of the fusion: none, z-norms, or ranks."""


def transpose(pool: ScoreMatrices) -> ScoreMatrices:
    """Return the pool in audio-to-text direction [A, Q]: clips are the queries, each one its own group.

    Clips without a caption are dropped.
    """
    clips = np.unique(pool.relevance.clip_P)
    index_of = np.full(pool.num_clips, -1)
    index_of[clips] = np.arange(len(clips))
    relevant = Relevance(index_of[pool.relevance.clip_P], pool.relevance.query_P, np.arange(len(clips)))

    def make_reader(across: ReadScores) -> ReadScores:
        def read(first: int, last: int) -> Scores:
            block_clips = clips[first:last]
            return np.ascontiguousarray(across(block_clips[0], block_clips[-1] + 1)[block_clips - block_clips[0]])

        return read

    return ScoreMatrices(
        pool.names, pool.split, pool.fingerprint, relevant, pool.num_queries, tuple(map(make_reader, pool.across)),
        block_bytes=BLOCK_BYTES_TRANSPOSED,
    )  # fmt: skip
