"""What a clip is, and what a store of clips looks like on disk.

    STORE/CORPUS/SPLIT/clips-00000-HASH.arrow   clips: CLIPS, Arrow IPC files that are memory-mapped
    STORE/CORPUS/SPLIT/clips-00000-HASH.json    what became of the clips that this shard was made from
    STORE/CORPUS/SPLIT/index-HASH.arrow         where each clip's audio lies, sorted by clip id: INDEX
    STORE/CORPUS/SPLIT/queries-HASH.arrow       sentences and the clips they describe: QUERIES
    STORE/CORPUS/SPLIT/set_aside-HASH.arrow     what couldn't be used, and why: SET_ASIDE
    STORE/CORPUS/SPLIT/sources-HASH.arrow       where its recordings come from, those without a file too: SOURCES
    STORE/CORPUS/SPLIT/paraphrases.arrow        other wordings of captions: PARAPHRASES; may come later, or never
    STORE/CORPUS/SPLIT/manifest.json            names these files; written last: a split without one isn't there
    STORE/exclusions.arrow                      clips that aren't trained on, and why: EXCLUSIONS
    STORE/listed.arrow                          what lists given with --exclude say: LISTED
    STORE/duplicates.arrow                      clips that sound like a held-out one: DUPLICATES

A file whose name holds a HASH never changes. Corpus modules hand over `Split`s; `data.store` writes and opens
them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

FORMAT_VERSION = 2
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

INDEX = pa.schema(
    [
        required("clip_id", pa.string()),
        required("num_samples", pa.int64()),
        required("captions", pa.list_(pa.string())),
        required("source", pa.string()),
        required("shard", pa.int32()),  # of the manifest's list
        required("offset", pa.int64()),  # of the audio in the shard's file, in bytes
        required("num_bytes", pa.int64()),
        required("digest", pa.string()),  # SHA-256 of what can change a result: decoded samples and captions
    ]
)

SET_ASIDE = pa.schema(
    [
        required("origin", pa.string()),
        required("reason", pa.string()),
        required("kind", pa.string()),
        required("file", pa.string()),
    ]
)

SOURCES = pa.schema([required("source", pa.string())])

EXCLUSIONS = pa.schema(
    [required("clip_id", pa.string()), required("split", pa.string()), required("reason", pa.string())]
)

LISTED = pa.schema([required("source", pa.string()), required("list", pa.string())])

DUPLICATES = pa.schema(
    [
        required("clip_id", pa.string()),
        required("split", pa.string()),  # 'corpus/split'
        required("held_out_clip_id", pa.string()),
        required("overlap_s", pa.float64()),  # how long both are the same sound
        required("score", pa.float64()),  # the share of the shorter one's landmarks that agree
    ]
)

PARAPHRASES = pa.schema(
    [
        required("clip_id", pa.string()),
        required("caption_hash", pa.string()),  # data.captions.caption_hash
        required("variants", pa.list_(pa.string())),
        required("model", pa.string()),
        required("instruction", pa.string()),  # its version and the number asked for, 'dcase2023/5'; '' if unknown
        pa.field("time", pa.timestamp("s", tz="UTC")),  # of the last answer
    ]
)

Samples = NDArray[np.float32]
"""Mono audio at SAMPLE_RATE_HZ, float32 [num_samples], full scale at -1 and 1."""


@dataclass(frozen=True)
class SourceClip:
    """A clip as a corpus describes it, its audio not yet read.

    `load` gives the samples in consecutive blocks of any length, so that no recording has to fit into memory, or raises
    `data.waveform.AudioError`, be it after some blocks; it runs in another process, so it has to be picklable. `origin`
    says where the clip comes from, for messages: a file, or a table and its row. `revision` changes whenever what
    `load` gives may have changed: a file's size and time, an archive member's checksum, a generator's seed. `source` is
    the recording that the clip was made from, as 'freesound:ID', 'youtube:ID', 'bbc:ID' or 'soundbible:ID'.
    """

    clip_id: str
    load: Callable[[], Iterator[Samples]]
    captions: tuple[str, ...]
    origin: str
    revision: str = ""
    num_bytes: int = 0  # of the file, or of the archive's member
    keywords: tuple[str, ...] = ()
    licence: str = ""
    source: str = ""


@dataclass(frozen=True)
class Paraphrase:
    """Other wordings of one caption of one clip, and what wrote them, by which instruction and when."""

    clip_id: str
    caption: str
    variants: tuple[str, ...]
    model: str
    instruction: str = ""
    time: datetime | None = None


@dataclass(frozen=True, order=True)
class SplitId:
    """A split of a corpus; as text 'corpus/split'."""

    corpus: str
    split: str

    @classmethod
    def parse(cls, name: str) -> "SplitId":
        """Return what 'corpus/split' names; the split is '' where there is only a corpus."""
        corpus, _, split = name.partition("/")
        return cls(corpus, split)

    def __str__(self) -> str:
        return f"{self.corpus}/{self.split}"


def file_of(clip_id: str) -> str:
    """Return a clip's file as its corpus publishes it: 'clotho/challenge/NAME.wav' -> 'NAME.wav'."""
    return clip_id.split("/", maxsplit=2)[2]


SetAsideKind = Literal["absent", "undecodable", "unusable"]
"""A file that a table names isn't there; a file can't be decoded; anything else, which the reason says."""


@dataclass(frozen=True)
class SetAside:
    """A clip, a row or a query that can't be used: where it comes from and why, in words and as a kind."""

    origin: str
    reason: str
    kind: SetAsideKind = "unusable"
    file: str = ""  # the name of the file that is absent or can't be decoded


@dataclass(frozen=True)
class Query:
    """A sentence to search with, and the clips that answer it: one, several, or in a challenge none."""

    text: str
    relevant_clip_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Split:
    """One split of a corpus, as published.

    Without `queries`, every caption of a clip is a query for that clip. With `clips_of`, this split has no clips of its
    own: its queries are about the clips of that split of the same corpus. `sources` are those of all recordings that
    the tables list, also of those without a file; `num_listed` is how many clips the tables list.
    """

    corpus: str
    name: str
    clips: tuple[SourceClip, ...]
    paraphrases: tuple[Paraphrase, ...] = ()
    set_aside: tuple[SetAside, ...] = ()
    queries: tuple[Query, ...] | None = None
    clips_of: str | None = None
    sources: frozenset[str] = frozenset()
    num_listed: int = 0
