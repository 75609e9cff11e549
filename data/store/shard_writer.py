"""Write shards: Arrow IPC files of clips with their audio, which readers memory-map.

The name of a shard contains a hash of its inputs, and a shard never changes.
"""

import dataclasses
import hashlib
import io
import json
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import dacite
import numpy as np
import pyarrow as pa

from data import waveform
from data.schema import CLIPS, FORMAT_VERSION, Samples, SourceClip
from data.store.files import atomic_write, hash_json, write_json
from data.waveform import AudioBlocks, AudioError, Codec

DECODER_VERSION = 2
"""Version of `data.decoding`; it increases when recordings can be decoded that couldn't be before."""

HELD_BYTES = 32 * 2**20
"""Maximum size of a clip's audio held in memory before it is written; longer audio is spooled to a temporary file."""

PIECE_BYTES = 2**24
"""Number of bytes of a temporary file mapped at a time while it is copied into a shard."""


@dataclass(frozen=True)
class StoredClip:
    """Position of a clip's audio in its shard file, in bytes, with its number of samples and its digest."""

    offset: int
    num_bytes: int
    num_samples: int
    digest: str  # SHA-256 of everything that can change a result: decoded samples and captions


@dataclass(frozen=True)
class ShardSummary:
    """Summary of a shard: the stored clips, the skipped ones, and the warnings about stored clips."""

    file: str
    num_bytes: int  # size of the file
    clips: dict[str, StoredClip]  # by clip id
    set_aside: dict[str, str]  # clip id -> reason
    decoder: int = 1  # version of the decoder
    warnings: dict[str, list[str]] = field(default_factory=dict)  # by clip id; clips without one are left out

    @property
    def num_samples(self) -> int:
        """Total number of samples of all clips."""
        return sum(clip.num_samples for clip in self.clips.values())


def build_shard_name(number: int, clips: Sequence[SourceClip], codec: Codec) -> str:
    """Return the file name of a shard: its number, and a hash of everything that determines its contents (the
    clips, the codec and the format of the store).
    """
    inputs = [(clip.clip_id, clip.revision, clip.captions, clip.keywords, clip.licence, clip.source) for clip in clips]
    return f"clips-{number:05d}-{hash_json([FORMAT_VERSION, codec, inputs])}.arrow"


def write_shard(path: Path, corpus: str, split: str, clips: Sequence[SourceClip], codec: Codec) -> ShardSummary:
    """Decode the clips of a split and write them with their captions as one shard, the file `path`, in the format
    `codec`; then write the shard's summary beside it, and return it.

    Clips that can't be decoded are skipped. At most about HELD_BYTES of audio are held in memory.
    """
    lengths: dict[str, int] = {}
    digests: dict[str, str] = {}
    set_aside: dict[str, str] = {}
    warnings: dict[str, list[str]] = {}
    with atomic_write(path) as temporary, _ShardFile(corpus, split, temporary) as out:
        for clip in clips:
            digest = hashlib.sha256()
            try:
                blocks = clip.load()
                audio, num_samples = encode_blocks(blocks, codec, path.parent, digest)
            except AudioError as error:
                set_aside[clip.clip_id] = str(error)
                continue
            digest.update(json.dumps(clip.captions).encode())
            digests[clip.clip_id], lengths[clip.clip_id] = digest.hexdigest(), num_samples
            out.write_clip(clip, audio, num_samples)
            if isinstance(blocks, AudioBlocks) and blocks.warnings:
                warnings[clip.clip_id] = blocks.warnings
    positions = zip(digests, locate_audio(path), strict=True)
    stored = {
        clip_id: StoredClip(offset, num_bytes, lengths[clip_id], digests[clip_id])
        for clip_id, (offset, num_bytes) in positions
    }
    summary = ShardSummary(path.name, path.stat().st_size, stored, set_aside, DECODER_VERSION, warnings)
    write_json(path.with_suffix(".json"), dataclasses.asdict(summary))
    return summary


def read_summary(path: Path) -> ShardSummary | None:
    """Read the summary of a shard, given the path of the shard; return None if the shard is absent or incomplete, or if
    clips were skipped that a later version of the decoder may read.
    """
    try:
        value = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        summary = dacite.from_dict(ShardSummary, value)
        is_outdated = bool(summary.set_aside) and summary.decoder < DECODER_VERSION
        return summary if path.stat().st_size == summary.num_bytes and not is_outdated else None
    except (FileNotFoundError, ValueError, dacite.DaciteError):
        return None


EncodedAudio = bytes | mmap.mmap
"""Audio of a clip in the format of a store, in memory or mapped from a temporary file."""


def encode_blocks(
    blocks: Iterable[Samples], codec: Codec, folder: Path, digest: "hashlib._Hash"
) -> tuple[EncodedAudio, int]:
    """Encode the samples of a clip in the format `codec`, and return its audio and its number of samples. `digest` is
    updated with the samples as 16-bit PCM. Temporary files, for audio that is too long for memory and for what is
    unpacked from archives, are in `folder`.
    """
    if isinstance(blocks, AudioBlocks):
        blocks.scratch = folder
    with tempfile.SpooledTemporaryFile(HELD_BYTES, dir=str(folder)) as file:
        spool = cast(BinaryIO, file)
        num_samples = waveform.encode(blocks, codec, spool, digest)
        size = spool.seek(0, os.SEEK_END)
        if size > HELD_BYTES:
            spool.flush()
            return mmap.mmap(spool.fileno(), size, access=mmap.ACCESS_READ), num_samples
        spool.seek(0)
        return spool.read(), num_samples


class _ShardFile:
    """Writer of a shard, used as a context manager. Each clip is a record batch of its own, so that its audio isn't
    copied.
    """

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

    def write_clip(self, clip: SourceClip, audio: EncodedAudio, num_samples: int) -> None:
        """Append a clip to the shard, whose audio of `num_samples` samples is already encoded."""
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
    """File opened for writing, which copies mapped audio in pieces and releases each one, so that an hour of audio
    isn't held in memory.
    """

    mapped: mmap.mmap | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data)
        written = 0
        while written < len(view):
            written += super().write(view[written : written + PIECE_BYTES])
            if self.mapped is not None:
                self.mapped.madvise(mmap.MADV_DONTNEED)
        return written


def locate_audio(path: Path) -> Iterator[tuple[int, int]]:
    """Yield the position of each clip's audio in a shard file, in the order of the clips, as pairs of offset and length
    in bytes.
    """
    with pa.memory_map(str(path)) as file:
        buffer = file.read_buffer()
        shard = pa.ipc.open_file(buffer)
        for number in range(shard.num_record_batches):
            audio = shard.get_batch(number)["audio"]
            _, offsets, data = audio.buffers()
            ends = np.frombuffer(offsets, "<i8")[audio.offset : audio.offset + len(audio) + 1]
            start = data.address - buffer.address
            yield from zip((start + ends[:-1]).tolist(), np.diff(ends).tolist(), strict=True)
