"""Retrieval examples: what an ensemble retrieves for some queries, with the relevant clips and excerpts to play.

Shapes: Q queries, A clips.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from data.errors import UserError
from data.schema import SAMPLE_RATE_HZ
from data.store.storage import Location
from data.store.stored_split import StoredSplit, open_split
from ensemble.pool import evaluation
from ensemble.pool.score_matrices import ScoreMatrices
from trainables.records.embeddings import Embeddings
from trainables.records.ensemble_file import Ensemble

MAX_QUERIES, TOP = 100, 5
EXCERPT_S, EXCERPT_RATE_HZ, COMPRESSION_LEVEL = 10.0, 16_000, 0.95
"""Length, sample rate and compression level of an excerpt.

An excerpt is an MP3, which every browser plays, of about 25 kB; Opus takes six times as long to encode.
"""

MAX_SOUND_BYTES = 22_000_000
"""Maximum size of all excerpts, which keeps the page below 25 MB; the maximum of 600 excerpts takes about 20 MB."""


@dataclass(frozen=True)
class RetrievedClip:
    """Clip in a retrieval example: one that was retrieved for the query, or that is relevant to it."""

    clip_id: str
    caption: str  # the first of its captions
    score: float
    rank: int
    is_relevant: bool

    @property
    def name(self) -> str:
        """File name of the clip."""
        return self.clip_id.rpartition("/")[2]


@dataclass(frozen=True)
class RetrievalExample:
    """A query, the retrieved clips, and the relevant clips that are not among them."""

    query: str
    best: Sequence[RetrievedClip]
    missed: Sequence[RetrievedClip]

    @property
    def rank(self) -> int | None:
        """Rank of the best-ranked relevant clip, from 1; None if the query has no relevant clip."""
        return min((clip.rank for clip in (*self.best, *self.missed) if clip.is_relevant), default=None)


@dataclass(frozen=True)
class PlayableClips:
    """Excerpts of clips as data URIs by clip id, and the problems of clips without an excerpt."""

    excerpts: Mapping[str, str]
    problems: Sequence[str] = ()


def build_examples(source: ScoreMatrices, ensemble: Ensemble, split: Embeddings) -> list[RetrievalExample]:
    """Return an ensemble's retrieval examples for up to MAX_QUERIES queries spread over the split. `source` has its
    members' scores.
    """
    weights = np.array(ensemble.weights, float)
    caption: dict[str, str] = {}
    for text, clip_ids in zip(split.queries, split.relevant_clip_ids, strict=True):
        for clip_id in clip_ids:
            caption.setdefault(clip_id, text)
    index_of = {clip_id: index for index, clip_id in enumerate(split.clip_ids)}
    number = len(split.queries)
    examples = []
    for query in sorted({int(at) for at in np.linspace(0, number - 1, min(MAX_QUERIES, number))}):
        scores_A = evaluation.fuse_block(source, weights.tolist(), query, query + 1)[0] / weights.sum()
        relevant = {index_of[clip_id] for clip_id in split.relevant_clip_ids[query]}
        clips = rank_clips(scores_A, relevant, [(clip_id, caption.get(clip_id, "")) for clip_id in split.clip_ids])
        examples.append(RetrievalExample(split.queries[query], clips[:TOP], clips[TOP:]))
    return examples


def rank_clips(scores_A: NDArray[Any], relevant: set[int], named_A: Sequence[tuple[str, str]]) -> list[RetrievedClip]:
    """Return the TOP clips with the highest scores, then the clips in `relevant` (indices) that rank below them; among
    equal scores, relevant clips rank last. `named_A` has each clip's id and one of its captions.
    """
    is_relevant_A = np.isin(np.arange(len(scores_A)), list(relevant))
    order = np.lexsort((is_relevant_A, -scores_A))
    return [
        RetrievedClip(clip_id, caption, float(scores_A[clip]), rank, clip in relevant)
        for rank, clip in enumerate(order.tolist(), start=1)
        for clip_id, caption in named_A[clip : clip + 1]
        if rank <= TOP or clip in relevant
    ]


def load_excerpts(
    store: Location, examples: Sequence[RetrievalExample], split_name: str, fingerprint: str
) -> PlayableClips:
    """Return an excerpt of each clip in the examples, read from the split `split_name` of a store; a fingerprint other
    than the given one is reported as a problem. Raises UserError if the store lacks the split.
    """
    split = open_split(store, split_name)
    changed = (
        [f"{split.store}/{split_name} has changed since it was embedded: recordings may not match the clips"]
        if split.fingerprint != fingerprint
        else []
    )
    index_of = {clip_id: index for index, clip_id in enumerate(split.clip_ids)}
    named = dict.fromkeys(clip.clip_id for example in examples for clip in (*example.best, *example.missed))
    excerpts: dict[str, str] = {}
    problems: list[str] = []
    num_bytes = 0
    for number, clip_id in enumerate(named):
        try:
            if clip_id not in index_of:
                raise UserError(f"{split.store}/{split_name} has no clip {clip_id}")
            excerpts[clip_id] = encode_excerpt(split, index_of[clip_id])
        except (UserError, OSError) as error:
            problems.append(str(error))
            continue
        num_bytes += len(excerpts[clip_id])
        if num_bytes > MAX_SOUND_BYTES:
            del excerpts[clip_id]
            problems.append(
                f"{len(named) - number} of {len(named)} clips have no recording: the page would be too large"
            )
            break
    return PlayableClips(excerpts, [*changed, *abbreviate(problems)])


def abbreviate(problems: Sequence[str]) -> list[str]:
    """Return the first three problems and, if there are more, a line with the number of the others."""
    return [*problems[:3], *([f"and {len(problems) - 3} more"] if len(problems) > 3 else [])]


def encode_excerpt(split: StoredSplit, clip: int) -> str:
    """Return the first EXCERPT_S seconds of a clip, given by its index in the split, as a data URI with an MP3."""
    samples = split.read_window(clip, 0, min(round(EXCERPT_S * SAMPLE_RATE_HZ), int(split.num_samples[clip])))
    file = io.BytesIO()
    resampled = soxr.resample(samples, SAMPLE_RATE_HZ, EXCERPT_RATE_HZ)
    soundfile.write(
        file, resampled, EXCERPT_RATE_HZ, format="MP3", subtype="MPEG_LAYER_III", bitrate_mode="VARIABLE",
        compression_level=COMPRESSION_LEVEL,
    )  # fmt: skip
    return f"data:audio/mpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
