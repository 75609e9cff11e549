"""What a clip is, and what a store of clips looks like on disk.

    STORE/CORPUS/SPLIT/clips-00000.arrow    clips: CLIPS, Arrow IPC files that are memory-mapped
    STORE/CORPUS/SPLIT/queries.arrow        sentences and the clips they describe: QUERIES
    STORE/CORPUS/SPLIT/paraphrases.arrow    other wordings of captions: PARAPHRASES; may come later, or never
    STORE/CORPUS/SPLIT/manifest.json        written last: a split without one isn't there

Corpus modules hand over `Split`s; `data.shards` writes and opens them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

FORMAT_VERSION = 1
"""Of the files in a store. A store of another version is refused: prepare it again."""

SAMPLE_RATE_HZ = 32_000
"""Of all audio in a store: what PaSST and PANNs were trained at."""

CLIPS = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),  # 'clotho/development/NAME.wav', unique over all corpora
        pa.field("corpus", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        # FLAC, or raw little-endian 16-bit PCM, as the manifest says; mono, SAMPLE_RATE_HZ. The longest clip of the
        # published corpora is 4.3 GB of PCM, so the offsets have 64 bits.
        pa.field("audio", pa.large_binary(), nullable=False),
        pa.field("num_samples", pa.int64(), nullable=False),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("keywords", pa.list_(pa.string()), nullable=False),
        pa.field("licence", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
    ]
)

QUERIES = pa.schema(
    [
        pa.field("text", pa.string(), nullable=False),
        # One clip, several, or none, as in a challenge's evaluation set.
        pa.field("relevant_clip_ids", pa.list_(pa.string()), nullable=False),
    ]
)

PARAPHRASES = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("caption_hash", pa.string(), nullable=False),  # data.captions.caption_hash
        pa.field("variants", pa.list_(pa.string()), nullable=False),
        pa.field("model", pa.string(), nullable=False),
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
