"""Write the shards of a split, and open a split that is there.

A shard is an Arrow IPC file that readers map into memory. They find a clip through the split's index, so that opening a
split costs the same whatever its audio's size, and reading a clip touches its own pages only. Shards and tables are
named by what they were made from and never change; the manifest, written last, names them: a split is either there as
a whole, or not at all, or as it was before.
"""

import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import math
import mmap
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard, cast

import dacite
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data import waveform
from data.captions import caption_hash
from data.errors import UserError
from data.schema import (
    CLIPS,
    FORMAT_VERSION,
    INDEX,
    PARAPHRASES,
    QUERIES,
    SET_ASIDE,
    SOURCES,
    Paraphrase,
    Query,
    Samples,
    SetAside,
    SourceClip,
    Split,
)
from data.store.storage import IMMUTABLE, MANIFEST, Location, Store
from data.waveform import AudioError, Codec

PARAPHRASES_FILE = "paraphrases.arrow"

ROWS_AT_A_TIME = 1000

HELD_BYTES = 32 * 2**20
"""Of a clip's audio held in memory before it is written. A longer one waits in a temporary file."""

PIECE_BYTES = 2**24
"""Of a temporary file that are mapped at a time while it is copied into a shard."""


@contextlib.contextmanager
def appearing_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name once the block has ended without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # a machine that dies mustn't leave the name without the contents
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that appears whole or not at all."""
    with appearing_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """A JSON file that a user names. A UserError says why it can't be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} isn't JSON: {error}") from error


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of a JSON file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def write_table(path: Path, table: pa.Table) -> None:
    """Write an Arrow IPC file that appears whole or not at all."""
    with (
        appearing_whole(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)


def read_table(path: Path) -> pa.Table:
    """An Arrow IPC file, mapped into memory."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


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


def short_hash(value: Any) -> str:
    """16 hexadecimal digits that stand for a JSON value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


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


def write_paraphrases(folder: Path, paraphrases: Iterable[Paraphrase]) -> None:
    """Write a split's table of paraphrases in place of the one that is there, without holding it in memory."""
    rows = (
        {
            "clip_id": paraphrase.clip_id,
            "caption_hash": caption_hash(paraphrase.caption),
            "variants": list(paraphrase.variants),
            "model": paraphrase.model,
            "instruction": paraphrase.instruction,
            "time": paraphrase.time,
        }
        for paraphrase in paraphrases
    )
    with (
        appearing_whole(folder / PARAPHRASES_FILE) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, PARAPHRASES) as writer,
    ):
        while batch := list(itertools.islice(rows, ROWS_AT_A_TIME)):
            writer.write_table(pa.Table.from_pylist(batch, schema=PARAPHRASES))


def fingerprint(digests: Mapping[str, str], queries: Sequence[Query] | None = None) -> str:
    """16 hexadecimal digits that stand for a split's contents, whatever their order, codec or path.

    Queries count where they aren't just the clips' captions.
    """
    lines = "".join(f"{clip_id}\t{digest}\n" for clip_id, digest in sorted(digests.items()))
    if queries is not None:
        lines += json.dumps(sorted((query.text, query.relevant_clip_ids) for query in queries))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def write_split(folder: Path, split: Split, codec: Codec, shards: Sequence[ShardSummary]) -> None:
    """Write a split's tables, then its manifest: from now on the split is there, and the one before it is gone.

    A split whose queries are about another one's clips takes that one's place for granted: it has to be there.
    """
    stored = {clip_id: (number, clip) for number, shard in enumerate(shards) for clip_id, clip in shard.clips.items()}
    clips = sorted((clip for clip in split.clips if clip.clip_id in stored), key=lambda clip: clip.clip_id)
    queries = split.queries
    if queries is None:
        queries = tuple(Query(caption, (clip.clip_id,)) for clip in clips for caption in clip.captions)
    set_aside = all_set_aside(split, shards)
    digests = {clip_id: clip.digest for clip_id, (_, clip) in stored.items()}
    base = open_split(folder.parents[1], f"{split.corpus}/{split.clips_of}") if split.clips_of else None
    if base:
        digests = {base.manifest["split"]: base.fingerprint}
    if split.queries is not None:
        queries, unanswered = answerable(split.queries, set(base.clip_ids if base else stored))
        set_aside += unanswered
    index = [
        {
            "clip_id": clip.clip_id,
            "captions": clip.captions,
            "source": clip.source,
            "shard": stored[clip.clip_id][0],
            **dataclasses.asdict(stored[clip.clip_id][1]),
        }
        for clip in clips
    ]
    tables = {
        "index": pa.Table.from_pylist(index, schema=INDEX),
        "queries": pa.Table.from_pylist([dataclasses.asdict(query) for query in queries], schema=QUERIES),
        "set_aside": pa.Table.from_pylist([dataclasses.asdict(clip) for clip in set_aside], schema=SET_ASIDE),
        "sources": pa.table({"source": sorted(split.sources)}, schema=SOURCES),
    }
    names = {}
    for kind, table in tables.items():
        names[kind] = f"{kind}-{hash_of_table(table)}.arrow"
        write_table(folder / names[kind], table)
    write_json(
        folder / MANIFEST,
        {
            "format_version": FORMAT_VERSION,
            "corpus": split.corpus,
            "split": split.name,
            "codec": codec,
            "clips_of": split.clips_of,
            "clips_fingerprint": base.fingerprint if base else None,
            "queries_are_captions": split.queries is None,
            "num_listed": split.num_listed or len(split.clips) + len(split.set_aside),
            "num_clips": len(clips),
            "num_queries": len(queries),
            "num_samples": sum(shard.num_samples for shard in shards),
            "num_set_aside": len(set_aside),
            "fingerprint": fingerprint(digests, queries if split.queries is not None else None),
            **names,
            "shards": [shard.file for shard in shards],
        },
    )
    remove_all_but(folder, {*names.values(), *(shard.file for shard in shards)})


def all_set_aside(split: Split, shards: Sequence[ShardSummary]) -> list[SetAside]:
    """What of a split can't be used: what its tables lack, then what can't be decoded."""
    reasons = {clip_id: reason for shard in shards for clip_id, reason in shard.set_aside.items()}
    torn = [SetAside(clip.origin, reasons[clip.clip_id]) for clip in split.clips if clip.clip_id in reasons]
    return [*split.set_aside, *torn]


def answerable(queries: Sequence[Query], clip_ids: Collection[str]) -> tuple[tuple[Query, ...], list[SetAside]]:
    """Queries without the clips that aren't there; one of which nothing is left is set aside, as is what it lacks."""
    kept, set_aside = [], []
    for query in queries:
        present = tuple(clip_id for clip_id in query.relevant_clip_ids if clip_id in clip_ids)
        set_aside += [
            SetAside(f"query {query.text!r}", f"its clip {clip_id} isn't there")
            for clip_id in query.relevant_clip_ids
            if clip_id not in clip_ids
        ]
        if present or not query.relevant_clip_ids:
            kept.append(Query(query.text, present))
    return tuple(kept), set_aside


def hash_of_table(table: pa.Table) -> str:
    """16 hexadecimal digits that stand for a table's contents."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return hashlib.sha256(sink.getvalue()).hexdigest()[:16]


def remove_all_but(folder: Path, names: set[str]) -> None:
    """Remove what earlier preparations of a split have left behind, and nothing else; shards keep their summaries."""
    for path in folder.iterdir():
        if IMMUTABLE.search(path.name) and path.with_suffix(".arrow").name not in names:
            path.unlink()


@dataclass(frozen=True)
class StoredSplit:
    """A split that is there: its manifest, and its tables mapped into memory."""

    store: Store
    manifest: dict[str, Any]
    clips_manifest: dict[str, Any]  # of the split whose clips these are: mostly this one

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredSplit, (self.store, self.manifest, self.clips_manifest)  # tables are mapped anew

    @property
    def name(self) -> str:
        """'corpus/split'."""
        return name_of(self.manifest)

    @property
    def fingerprint(self) -> str:
        """Stands for the contents of clips, captions and queries."""
        return str(self.manifest["fingerprint"])

    @property
    def codec(self) -> Codec:
        """Of the audio."""
        return cast(Codec, self.clips_manifest["codec"])

    @cached_property
    def index(self) -> pa.Table:
        """The clips without their audio, sorted by id, with the columns of `data.schema.INDEX`."""
        return self.table("index", self.clips_manifest)

    @cached_property
    def queries(self) -> pa.Table:
        """The queries, with the columns of `data.schema.QUERIES`."""
        return self.table("queries", self.manifest)

    @property
    def set_aside(self) -> pa.Table:
        """What couldn't be used, with the columns of `data.schema.SET_ASIDE`."""
        return self.table("set_aside", self.manifest)

    def undecodable(self) -> dict[str, str]:
        """The clips whose files couldn't be decoded, by id, and why. A UserError where what says so is gone."""
        reasons: dict[str, str] = {}
        for shard in self.clips_manifest["shards"]:
            name = f"{name_of(self.clips_manifest)}/{Path(shard).with_suffix('.json')}"
            try:
                reasons |= json.loads(self.store.read(name))["set_aside"]
            except FileNotFoundError:
                raise UserError(
                    f"{self.store}/{name} is absent: prepare this split again: {prepare_command(self.store, self.name)}"
                ) from None
        return reasons

    @property
    def sources(self) -> set[str]:
        """Where the recordings come from that the corpus' tables list, with or without a file."""
        return set(self.table("sources", self.manifest)["source"].to_pylist())

    def table(self, kind: str, manifest: dict[str, Any]) -> pa.Table:
        """One of a manifest's tables."""
        return pa.ipc.open_file(self.store.map(f"{name_of(manifest)}/{manifest[kind]}")).read_all()

    def shard(self, number: int) -> pa.Table:
        """A shard's clips, with the columns of `data.schema.CLIPS`."""
        return pa.ipc.open_file(self.store.map(self.shard_path(number))).read_all()

    def shard_path(self, number: int) -> str:
        """A shard's file, from the store on."""
        return f"{name_of(self.clips_manifest)}/{self.clips_manifest['shards'][number]}"

    @cached_property
    def clip_ids(self) -> list[str]:
        """The clips' ids, sorted."""
        return cast(list[str], self.index["clip_id"].to_pylist())

    @cached_property
    def captions(self) -> list[list[str]]:
        """Each clip's captions, in the order of `clip_ids`."""
        return cast(list[list[str]], self.index["captions"].to_pylist())

    @cached_property
    def num_samples(self) -> NDArray[np.int64]:
        """Each clip's length, in the order of `clip_ids`."""
        return self._column("num_samples")

    @cached_property
    def _places(self) -> tuple[NDArray[np.int64], ...]:
        return self._column("shard"), self._column("offset"), self._column("num_bytes")

    def _column(self, name: str) -> NDArray[np.int64]:
        return cast(NDArray[np.int64], self.index[name].combine_chunks().to_numpy())

    def open_clip(self, clip: int) -> BinaryIO:
        """A clip's audio as it is stored, as a file that can seek."""
        shard, offset, num_bytes = (column[clip].item() for column in self._places)
        return self.store.open(self.shard_path(shard), offset, num_bytes)

    def decode_window(self, clip: int, start: int, out: Samples) -> None:
        """Fill `out` with a clip's samples from sample `start` on."""
        try:
            waveform.decode_window(self.open_clip(clip), self.codec, start, out)
        except AudioError as error:
            clip_id = self.index["clip_id"][clip].as_py()
            raise UserError(f"{self.store}/{self.name}: {clip_id}: {error}; prepare this split again") from error

    def window(self, clip: int, start: int, count: int) -> Samples:
        """`count` samples of a clip from sample `start` on."""
        samples = np.empty(count, np.float32)
        self.decode_window(clip, start, samples)
        return samples

    def paraphrases(self) -> dict[tuple[str, str], list[str]]:
        """Variants by clip id and caption hash. Raises UserError where the split has none."""
        rows = self.required_paraphrases().select(["clip_id", "caption_hash", "variants"]).to_pylist()
        return {(row["clip_id"], row["caption_hash"]): row["variants"] for row in rows}

    def required_paraphrases(self) -> pa.Table:
        """The table of paraphrases. Raises UserError where the split has none."""
        table = self.paraphrases_table()
        if table is None or not len(table):
            raise UserError(
                f"{self.name} has no paraphrases ({self.store}/{self.name}/{PARAPHRASES_FILE} is "
                f"{'absent' if table is None else 'empty'}): set the paraphrase probability to 0, "
                f"or have them written: python data/paraphrase.py {self.name.partition('/')[0]} --store {self.store}"
            )
        return table

    def paraphrases_table(self) -> pa.Table | None:
        """The paraphrases, with the columns of `data.schema.PARAPHRASES`; None where the split has no table."""
        try:
            return pa.ipc.open_file(self.store.read(f"{self.name}/{PARAPHRASES_FILE}")).read_all()
        except FileNotFoundError:
            return None

    def paraphrases_fingerprint(self) -> str:
        """16 hexadecimal digits that stand for the contents of the paraphrases, whatever their order."""
        lines = sorted(json.dumps([*key, variants]) for key, variants in self.paraphrases().items())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def name_of(manifest: Mapping[str, Any]) -> str:
    """'corpus/split' of a manifest."""
    return f"{manifest['corpus']}/{manifest['split']}"


def open_split(location: Location, name: str) -> StoredSplit:
    """A split by name, 'corpus/split'.

    Raises UserError where it isn't there, or was written by another version of the schema, or where the split whose
    clips it asks for has changed since.
    """
    store = Store.of(location)
    manifest = read_manifest(store, name)
    if not manifest["clips_of"]:
        return StoredSplit(store, manifest, manifest)
    clips_manifest = read_manifest(store, f"{manifest['corpus']}/{manifest['clips_of']}")
    if clips_manifest["fingerprint"] != manifest["clips_fingerprint"]:
        raise UserError(
            f"{store}/{name} was prepared for other contents of {name_of(clips_manifest)}; "
            f"prepare it again: {prepare_command(store, name)}"
        )
    return StoredSplit(store, manifest, clips_manifest)


def read_manifest(store: Store, name: str) -> dict[str, Any]:
    """A split's manifest. Raises UserError as `open_split` does."""
    try:
        manifest: dict[str, Any] = json.loads(store.read(f"{name}/{MANIFEST}"))
        version = manifest.get("format_version")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{store} holds no split {name!r} (it holds: {', '.join(store.splits()) or 'nothing'}); "
            f"prepare it with: {prepare_command(store, name)}"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise UserError(
            f"{store}/{name}/{MANIFEST} isn't a JSON object ({error}); "
            f"prepare this split again: {prepare_command(store, name)}"
        ) from error
    if version != FORMAT_VERSION:
        raise UserError(
            f"{store}/{name} has schema version {version}, this code reads {FORMAT_VERSION}; "
            f"prepare it again: {prepare_command(store, name)}"
        )
    return manifest


def prepare_command(store: Store, name: str) -> str:
    """The command that makes a split."""
    return f"python data/prepare.py {name.partition('/')[0]} --store {store}"
