"""What a clip is, and what a store of clips looks like on disk.

    STORE/CORPUS/SPLIT/clips-00000.arrow    clips: CLIPS, Arrow IPC files that are memory-mapped
    STORE/CORPUS/SPLIT/queries.arrow        sentences and the clips they describe: QUERIES
    STORE/CORPUS/SPLIT/paraphrases.arrow    other wordings of captions: PARAPHRASES; may come later, or never
    STORE/CORPUS/SPLIT/manifest.json        written last: a split without one isn't there

Corpus modules hand over `Split`s; `data.shards` writes and opens them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

FORMAT_VERSION = 1
"""Of the files in a store. A store of another version is refused: prepare it again."""

SAMPLE_RATE_HZ = 32_000
"""Of all audio in a store: what PaSST and PANNs were trained at."""


def required(name: str, kind: pa.DataType) -> "pa.Field[Any]":
    """A column that always holds a value."""
    return pa.field(name, kind, nullable=False)


CLIPS = pa.schema(
    [
        required("clip_id", pa.string()),  # 'clotho/development/NAME.wav', unique over all corpora
        required("corpus", pa.string()),
        required("split", pa.string()),
        # FLAC, or raw little-endian 16-bit PCM, as the manifest says; mono, SAMPLE_RATE_HZ. The longest clip of the
        # published corpora is 4.3 GB of PCM, so the offsets have 64 bits.
        required("audio", pa.large_binary()),
        required("num_samples", pa.int64()),
        required("captions", pa.list_(pa.string())),
        required("keywords", pa.list_(pa.string())),
        required("licence", pa.string()),
        required("source", pa.string()),
    ]
)

QUERIES = pa.schema(
    [
        required("text", pa.string()),
        # One clip, several, or none, as in a challenge's evaluation set.
        required("relevant_clip_ids", pa.list_(pa.string())),
    ]
)

PARAPHRASES = pa.schema(
    [
        required("clip_id", pa.string()),
        required("caption_hash", pa.string()),  # data.captions.caption_hash
        required("variants", pa.list_(pa.string())),
        required("model", pa.string()),
    ]
)

Samples = NDArray[np.float32]
"""Mono audio at SAMPLE_RATE_HZ, float32 [num_samples], full scale at -1 and 1."""


@dataclass(frozen=True)
class SourceClip:
    """A clip as a corpus describes it, its audio not yet read.

    `load` gives the samples, or raises `data.waveform.AudioError`; it runs in another process, so it has to be
    picklable. `origin` says where the clip comes from, for messages: a file, or a table and its row.
    """

    clip_id: str
    load: Callable[[], Samples]
    captions: tuple[str, ...]
    origin: str
    keywords: tuple[str, ...] = ()
    licence: str = ""
    source: str = ""


@dataclass(frozen=True)
class Paraphrase:
    """Other wordings of one caption of one clip, and what wrote them."""

    clip_id: str
    caption: str
    variants: tuple[str, ...]
    model: str


@dataclass(frozen=True)
class SetAside:
    """A clip that can't be used: where it comes from and why."""

    origin: str
    reason: str


@dataclass(frozen=True)
class Split:
    """One split of a corpus, as published. Every caption of a clip is a query for that clip."""

    corpus: str
    name: str
    clips: tuple[SourceClip, ...]
    paraphrases: tuple[Paraphrase, ...] = ()
    set_aside: tuple[SetAside, ...] = field(default=())
