"""Write shards: Arrow IPC files of some clips each, audio and all, that readers map into memory.

A shard is named by what it was made from and never changes.
"""

import dataclasses
import hashlib
import io
import json
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import dacite
import numpy as np
import pyarrow as pa

from data import waveform
from data.schema import CLIPS, FORMAT_VERSION, SourceClip
from data.store.files import appearing_whole, short_hash, write_json
from data.waveform import AudioError, Codec

HELD_BYTES = 32 * 2**20
"""Of a clip's audio held in memory before it is written. A longer one waits in a temporary file."""

PIECE_BYTES = 2**24
"""Of a temporary file that are mapped at a time while it is copied into a shard."""


@dataclass(frozen=True)
class StoredClip:
    """Where a clip's audio lies in its shard, in bytes, and what it holds."""

    offset: int
    num_bytes: int
    num_samples: int
    digest: str  # SHA-256 of what can change a result: decoded samples and captions


@dataclass(frozen=True)
class ShardSummary:
    """What became of the clips that a shard was made from."""

    file: str
    num_bytes: int  # of the file
    clips: dict[str, StoredClip]  # by clip id
    set_aside: dict[str, str]  # clip id -> reason

    @property
    def num_samples(self) -> int:
        """Of all clips together."""
        return sum(clip.num_samples for clip in self.clips.values())


def shard_name(number: int, clips: Sequence[SourceClip], codec: Codec) -> str:
    """A shard's file name: its number, and a hash of what it is made from."""
    inputs = [(clip.clip_id, clip.revision, clip.captions, clip.keywords, clip.licence, clip.source) for clip in clips]
    return f"clips-{number:05d}-{short_hash([FORMAT_VERSION, codec, inputs])}.arrow"


def write_shard(path: Path, corpus: str, split: str, clips: Sequence[SourceClip], codec: Codec) -> ShardSummary:
    """Decode the clips and write those that can be decoded as one shard, then its summary beside it.

    Clips that can't be decoded are set aside. No more than about HELD_BYTES of audio are held in memory.
    """
    lengths: dict[str, int] = {}
    digests: dict[str, str] = {}
    set_aside: dict[str, str] = {}
    with appearing_whole(path) as temporary, _ShardFile(corpus, split, temporary) as out:
        for clip in clips:
            digest = hashlib.sha256()
            try:
                audio, num_samples = encode_clip(clip, codec, path.parent, digest)
            except AudioError as error:
                set_aside[clip.clip_id] = str(error)
                continue
            digest.update(json.dumps(clip.captions).encode())
            digests[clip.clip_id], lengths[clip.clip_id] = digest.hexdigest(), num_samples
            out.add(clip, audio, num_samples)
    places = zip(digests, audio_places(path), strict=True)
    stored = {
        clip_id: StoredClip(offset, num_bytes, lengths[clip_id], digests[clip_id])
        for clip_id, (offset, num_bytes) in places
    }
    summary = ShardSummary(path.name, path.stat().st_size, stored, set_aside)
    write_json(path.with_suffix(".json"), dataclasses.asdict(summary))
    return summary


def read_summary(path: Path) -> ShardSummary | None:
    """The summary of a shard that is there as a whole; None if it isn't."""
    try:
        value = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        summary = dacite.from_dict(ShardSummary, value)
        return summary if path.stat().st_size == summary.num_bytes else None
    except (FileNotFoundError, ValueError, dacite.DaciteError):
        return None


Audio = bytes | mmap.mmap
"""A clip as a store keeps it, in memory or mapped from a temporary file."""


def encode_clip(clip: SourceClip, codec: Codec, folder: Path, digest: "hashlib._Hash") -> tuple[Audio, int]:
    """A clip's audio as a store keeps it, and its number of samples.

    What is too long to be held in memory waits in a temporary file in `folder`.
    """
    with tempfile.SpooledTemporaryFile(HELD_BYTES, dir=str(folder)) as file:
        spool = cast(BinaryIO, file)
        num_samples = waveform.encode(clip.load(), codec, spool, digest)
        size = spool.seek(0, os.SEEK_END)
        if size > HELD_BYTES:
            spool.flush()
            return mmap.mmap(spool.fileno(), size, access=mmap.ACCESS_READ), num_samples
        spool.seek(0)
        return spool.read(), num_samples


class _ShardFile:
    """An Arrow file of clips in the making, each a record batch of its own: none is copied, however long it is."""

    def __init__(self, corpus: str, split: str, path: Path) -> None:
        self.corpus, self.split = corpus, split
        self.sink = _PiecewiseFile(path, "wb")
        self.writer = pa.ipc.new_file(pa.PythonFile(self.sink, mode="w"), CLIPS)

    def __enter__(self) -> "_ShardFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.writer.close()
        finally:
            self.sink.close()

    def add(self, clip: SourceClip, audio: Audio, num_samples: int) -> None:
        """Write a clip."""
        self.sink.mapped = audio if isinstance(audio, mmap.mmap) else None
        ends = pa.py_buffer(np.array([0, len(audio)], "<i8"))
        row = {
            "clip_id": clip.clip_id,
            "corpus": self.corpus,
            "split": self.split,
            "num_samples": num_samples,
            "captions": clip.captions,
            "keywords": clip.keywords,
            "licence": clip.licence,
            "source": clip.source,
        }
        columns: dict[str, Any] = {name: [value] for name, value in row.items()}
        buffers = [None, ends, pa.py_buffer(audio)]
        columns["audio"] = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, buffers)
        self.writer.write_batch(pa.record_batch(columns, schema=CLIPS))


class _PiecewiseFile(io.FileIO):
    """A file that copies mapped audio piece by piece and lets go of each piece: an hour of it isn't held in memory."""

    mapped: mmap.mmap | None = None

    def write(self, data: Any) -> int:
        whole = memoryview(data)
        written = 0
        while written < len(whole):
            written += super().write(whole[written : written + PIECE_BYTES])
            if self.mapped is not None:
                self.mapped.madvise(mmap.MADV_DONTNEED)
        return written


def audio_places(path: Path) -> Iterator[tuple[int, int]]:
    """Where each clip's audio lies in a shard's file: offset and length in bytes, in the order of the clips."""
    with pa.memory_map(str(path)) as file:
        whole = file.read_buffer()
        shard = pa.ipc.open_file(whole)
        for number in range(shard.num_record_batches):
            audio = shard.get_batch(number)["audio"]
            _, offsets, data = audio.buffers()
            ends = np.frombuffer(offsets, "<i8")[audio.offset : audio.offset + len(audio) + 1]
            start = data.address - whole.address
            yield from zip((start + ends[:-1]).tolist(), np.diff(ends).tolist(), strict=True)
