"""Schema of clips and queries, and the layout of a store on disk.

    STORE/CORPUS/SPLIT/clips-00000-HASH.arrow   shard of clips with audio: CLIPS, a memory-mapped Arrow IPC file
    STORE/CORPUS/SPLIT/clips-00000-HASH.json    summary of that shard: the stored clips and the skipped ones
    STORE/CORPUS/SPLIT/index-HASH.arrow         location of each clip's audio, sorted by clip id: INDEX
    STORE/CORPUS/SPLIT/queries-HASH.arrow       queries and the clips relevant to them: QUERIES
    STORE/CORPUS/SPLIT/set_aside-HASH.arrow     skipped clips, rows and queries, with reasons: SKIPPED_ITEMS
    STORE/CORPUS/SPLIT/sources-HASH.arrow       sources of all listed recordings, with or without a file: SOURCES
    STORE/CORPUS/SPLIT/paraphrases.arrow        paraphrases of captions: PARAPHRASES; optional, may be added later
    STORE/CORPUS/SPLIT/manifest.json            names of these files; written last: without it the split doesn't exist
    STORE/exclusions.arrow                      clips excluded from training, with reasons: EXCLUSIONS
    STORE/listed.arrow                          sources named by lists given with --exclude: LISTED
    STORE/duplicates.arrow                      clips that sound the same as a held-out clip: DUPLICATES

A file whose name contains a HASH never changes. Corpus modules return `Split` objects; `data.store` writes and opens
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
"""Version of the files in a store. A store of another version is refused and has to be prepared again."""

SAMPLE_RATE_HZ = 32_000
"""Sample rate of all audio in a store: the rate that PaSST and PANNs were trained at."""


def build_required_column(name: str, kind: pa.DataType) -> "pa.Field[Any]":
    """Return an Arrow field for a column that contains no null values."""
    return pa.field(name, kind, nullable=False)


CLIPS = pa.schema(
    [
        build_required_column("clip_id", pa.string()),  # 'clotho/development/NAME.wav', unique across all corpora
        build_required_column("corpus", pa.string()),
        build_required_column("split", pa.string()),
        # FLAC or raw little-endian 16-bit PCM, depending on the manifest; mono, SAMPLE_RATE_HZ. The longest clip of the
        # published corpora is 4.3 GB of PCM, so the offsets need 64 bits.
        build_required_column("audio", pa.large_binary()),
        build_required_column("num_samples", pa.int64()),
        build_required_column("captions", pa.list_(pa.string())),
        build_required_column("keywords", pa.list_(pa.string())),
        build_required_column("licence", pa.string()),
        build_required_column("source", pa.string()),
    ]
)

QUERIES = pa.schema(
    [
        build_required_column("text", pa.string()),
        # One clip, several, or none (a challenge's evaluation set).
        build_required_column("relevant_clip_ids", pa.list_(pa.string())),
    ]
)

INDEX = pa.schema(
    [
        build_required_column("clip_id", pa.string()),
        build_required_column("num_samples", pa.int64()),
        build_required_column("captions", pa.list_(pa.string())),
        build_required_column("source", pa.string()),
        build_required_column("shard", pa.int32()),  # index into the manifest's list of shards
        build_required_column("offset", pa.int64()),  # of the audio in the shard file, in bytes
        build_required_column("num_bytes", pa.int64()),
        build_required_column(
            "digest", pa.string()
        ),  # SHA-256 of everything that can change a result: decoded samples and captions
    ]
)

SKIPPED_ITEMS = pa.schema(
    [
        build_required_column("origin", pa.string()),
        build_required_column("reason", pa.string()),
        build_required_column("kind", pa.string()),
        build_required_column("file", pa.string()),
    ]
)

SOURCES = pa.schema([build_required_column("source", pa.string())])

EXCLUSIONS = pa.schema(
    [
        build_required_column("clip_id", pa.string()),
        build_required_column("split", pa.string()),
        build_required_column("reason", pa.string()),
    ]
)

LISTED = pa.schema([build_required_column("source", pa.string()), build_required_column("list", pa.string())])

DUPLICATES = pa.schema(
    [
        build_required_column("clip_id", pa.string()),
        build_required_column("split", pa.string()),  # 'corpus/split'
        build_required_column("held_out_clip_id", pa.string()),
        build_required_column("overlap_s", pa.float64()),  # for how long both are the same sound
        build_required_column("score", pa.float64()),  # overlap_s as a fraction of the sounding time of the overlap
    ]
)

PARAPHRASES = pa.schema(
    [
        build_required_column("clip_id", pa.string()),
        build_required_column("caption_hash", pa.string()),  # data.captions.hash_caption
        build_required_column("variants", pa.list_(pa.string())),
        build_required_column("model", pa.string()),
        build_required_column("instruction", pa.string()),  # version and requested number, 'dcase2023/5'; '' if unknown
        pa.field("time", pa.timestamp("s", tz="UTC")),  # time of the last answer
    ]
)

Samples = NDArray[np.float32]
"""Mono audio at SAMPLE_RATE_HZ: float32 [num_samples], full scale is -1 to 1."""


@dataclass(frozen=True)
class SourceClip:
    """Clip as a corpus describes it, before its audio is read.

    `load` yields the samples in consecutive blocks of any length, so that no recording has to fit into memory; it
    raises `data.waveform.AudioError` if the recording can't be decoded, possibly after some blocks. It runs in another
    process, so it has to be picklable. `origin` says where the clip comes from, for messages: a file, or a table and
    its row; `caption_origins` are those of the captions, if they come from several rows. `revision` changes whenever
    the output of `load` may have changed: a file's size and time, an archive member's checksum, a generator's seed.
    `source` is the recording that the clip was made from: 'freesound:ID', 'youtube:ID', 'bbc:ID' or 'soundbible:ID'.
    """

    clip_id: str
    load: Callable[[], Iterator[Samples]]
    captions: tuple[str, ...]
    origin: str
    revision: str = ""
    num_bytes: int = 0  # of the file or archive member
    keywords: tuple[str, ...] = ()
    licence: str = ""
    source: str = ""
    caption_origins: tuple[str, ...] = ()


@dataclass(frozen=True)
class Paraphrase:
    """Paraphrases (`variants`) of one caption of one clip, and the model, the instruction and the time that
    produced them.
    """

    clip_id: str
    caption: str
    variants: tuple[str, ...]
    model: str
    instruction: str = ""
    time: datetime | None = None


@dataclass(frozen=True, order=True)
class SplitId:
    """Name of a split as its corpus and its split; `str` converts it to the text 'corpus/split'."""

    corpus: str
    split: str

    @classmethod
    def parse(cls, name: str) -> "SplitId":
        """Parse 'corpus/split'; the split is '' if the name is only a corpus.

        Example:
            >>> SplitId.parse("clotho/development")
            SplitId(corpus='clotho', split='development')
        """
        corpus, _, split = name.partition("/")
        return cls(corpus, split)

    def __str__(self) -> str:
        return f"{self.corpus}/{self.split}"


def get_file_name(clip_id: str) -> str:
    """Return the name of a clip's file as published: 'clotho/challenge/NAME.wav' -> 'NAME.wav'."""
    return clip_id.split("/", maxsplit=2)[2]


SkipKind = Literal["absent", "undecodable", "unusable"]
"""Kind of a skipped item: the file named in a table is absent; the file can't be decoded; any other reason."""


@dataclass(frozen=True)
class SkippedItem:
    """Clip, row or query that can't be used: where it comes from, the reason in words, and the kind of reason."""

    origin: str
    reason: str
    kind: SkipKind = "unusable"
    file: str = ""  # name of the file that is absent or can't be decoded


@dataclass(frozen=True)
class Query:
    """Sentence to search with, and the relevant clips: one, several, or none (in a challenge)."""

    text: str
    relevant_clip_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Split:
    """Split of a corpus as published: its clips, whose audio isn't read yet, its queries and paraphrases, and the
    skipped items.

    Without `queries`, every caption of a clip is a query for that clip. With `clips_of`, the split has no clips of its
    own: its queries refer to the clips of that other split of the same corpus. `sources` are the sources of all
    recordings listed in the corpus' tables, including recordings without a file; `num_listed` is the number of clips
    listed in the tables.
    """

    corpus: str
    name: str
    clips: tuple[SourceClip, ...]
    paraphrases: tuple[Paraphrase, ...] = ()
    set_aside: tuple[SkippedItem, ...] = ()
    queries: tuple[Query, ...] | None = None
    clips_of: str | None = None
    sources: frozenset[str] = frozenset()
    num_listed: int = 0
