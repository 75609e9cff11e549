"""Write the shards of a split, and open a split that is there.

A shard is an Arrow IPC file that readers map into memory: opening costs no copy, and reading a clip touches its own
pages only. The manifest is written last, so a split is either there as a whole or not at all.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from data import waveform
from data.captions import caption_hash
from data.errors import UserError
from data.schema import CLIPS, FORMAT_VERSION, PARAPHRASES, QUERIES, Paraphrase, Samples, SetAside, SourceClip
from data.waveform import AudioError, Codec

MANIFEST = "manifest.json"
QUERIES_FILE = "queries.arrow"
PARAPHRASES_FILE = "paraphrases.arrow"

RECORD_BATCH_BYTES = 32 * 2**20
"""Audio held in memory before it is written."""


@contextlib.contextmanager
def appearing_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name once the block has ended without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that appears whole or not at all."""
    with appearing_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


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
class ShardSummary:
    """What became of the clips that a shard was made from."""

    file: str
    num_clips: int
    num_samples: int
    digests: dict[str, str]  # clip id -> SHA-256 of what can change a result: decoded samples and captions
    set_aside: tuple[SetAside, ...]


def write_shard(path: Path, corpus: str, split: str, clips: Sequence[SourceClip], codec: Codec) -> ShardSummary:
    """Decode the clips and write those that can be decoded as one shard; the others are set aside."""
    digests: dict[str, str] = {}
    set_aside: list[SetAside] = []
    num_samples = 0
    with (
        appearing_whole(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, CLIPS) as out,
    ):
        rows: list[dict[str, Any]] = []
        for clip in clips:
            try:
                pcm = waveform.to_pcm16(clip.load())
            except AudioError as error:
                set_aside.append(SetAside(clip.origin, str(error)))
                continue
            num_samples += len(pcm)
            contents = hashlib.sha256(pcm.tobytes())
            contents.update(json.dumps(clip.captions).encode())
            digests[clip.clip_id] = contents.hexdigest()
            rows.append(
                {
                    "clip_id": clip.clip_id,
                    "corpus": corpus,
                    "split": split,
                    "audio": waveform.encode(pcm, codec),
                    "num_samples": len(pcm),
                    "captions": list(clip.captions),
                    "keywords": list(clip.keywords),
                    "licence": clip.licence,
                    "source": clip.source,
                }
            )
            if sum(len(row["audio"]) for row in rows) >= RECORD_BATCH_BYTES:
                out.write_table(pa.Table.from_pylist(rows, schema=CLIPS))
                rows = []
        out.write_table(pa.Table.from_pylist(rows, schema=CLIPS))
    return ShardSummary(path.name, len(digests), num_samples, digests, tuple(set_aside))


def write_paraphrases(folder: Path, paraphrases: Sequence[Paraphrase]) -> None:
    """Write a split's table of paraphrases in place of the one that is there."""
    rows = [
        {
            "clip_id": paraphrase.clip_id,
            "caption_hash": caption_hash(paraphrase.caption),
            "variants": list(paraphrase.variants),
            "model": paraphrase.model,
        }
        for paraphrase in paraphrases
    ]
    write_table(folder / PARAPHRASES_FILE, pa.Table.from_pylist(rows, schema=PARAPHRASES))


def fingerprint(digests: dict[str, str]) -> str:
    """16 hexadecimal digits that stand for a split's contents, whatever their order, codec or path."""
    lines = "".join(f"{clip_id}\t{digest}\n" for clip_id, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def write_manifest(
    folder: Path, corpus: str, split: str, codec: Codec, shards: Sequence[ShardSummary], set_aside: Sequence[SetAside]
) -> None:
    """Write queries, then the manifest: from now on the split is there."""
    digests = {clip_id: digest for shard in shards for clip_id, digest in shard.digests.items()}
    clips = pa.concat_tables(
        [read_table(folder / shard.file).select(["clip_id", "captions"]) for shard in shards] or [CLIPS.empty_table()]
    )
    queries = [
        {"text": caption, "relevant_clip_ids": [row["clip_id"]]}
        for row in clips.to_pylist()
        for caption in row["captions"]
    ]
    write_table(folder / QUERIES_FILE, pa.Table.from_pylist(queries, schema=QUERIES))
    write_json(
        folder / MANIFEST,
        {
            "format_version": FORMAT_VERSION,
            "corpus": corpus,
            "split": split,
            "codec": codec,
            "shards": [shard.file for shard in shards],
            "num_clips": len(digests),
            "num_queries": len(queries),
            "num_samples": sum(shard.num_samples for shard in shards),
            "fingerprint": fingerprint(digests),
            "set_aside": [dataclasses.asdict(clip) for clip in set_aside],
        },
    )


@dataclass(frozen=True)
class StoredSplit:
    """A split that is there: its manifest, and its tables mapped into memory."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        """'corpus/split'."""
        return f"{self.manifest['corpus']}/{self.manifest['split']}"

    @property
    def fingerprint(self) -> str:
        """Stands for the contents of clips and captions."""
        return str(self.manifest["fingerprint"])

    @cached_property
    def clips(self) -> pa.Table:
        """The clips, with the columns of `data.schema.CLIPS`."""
        return pa.concat_tables([read_table(self.folder / file) for file in self.manifest["shards"]])

    @cached_property
    def queries(self) -> pa.Table:
        """The queries, with the columns of `data.schema.QUERIES`."""
        return read_table(self.folder / QUERIES_FILE)

    @cached_property
    def clip_ids(self) -> list[str]:
        """The clips' ids, in the order of `clips`."""
        return cast(list[str], self.clips["clip_id"].to_pylist())

    @cached_property
    def captions(self) -> list[list[str]]:
        """Each clip's captions, in the order of `clips`."""
        return cast(list[list[str]], self.clips["captions"].to_pylist())

    @cached_property
    def num_samples(self) -> list[int]:
        """Each clip's length, in the order of `clips`."""
        return cast(list[int], self.clips["num_samples"].to_pylist())

    def window(self, index: int, start: int, count: int) -> Samples:
        """`count` samples of a clip from sample `start` on."""
        try:
            return waveform.decode_window(self.clips["audio"][index].as_buffer(), self.manifest["codec"], start, count)
        except AudioError as error:
            raise UserError(f"{self.folder}: {self.clip_ids[index]}: {error}; prepare this split again") from error

    def paraphrases(self) -> dict[tuple[str, str], list[str]]:
        """Variants by clip id and caption hash. Raises UserError where the split has none."""
        path = self.folder / PARAPHRASES_FILE
        if not path.exists():
            raise UserError(f"{self.name} has no paraphrases ({path} is absent): set the paraphrase probability to 0")
        return {(row["clip_id"], row["caption_hash"]): row["variants"] for row in read_table(path).to_pylist()}

    def paraphrases_fingerprint(self) -> str:
        """16 hexadecimal digits that stand for the contents of the paraphrases, whatever their order."""
        lines = sorted(json.dumps([*key, variants]) for key, variants in self.paraphrases().items())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def open_split(store: Path, name: str) -> StoredSplit:
    """A split by name, 'corpus/split'.

    Raises UserError where it isn't there, or was written by another version of the schema.
    """
    folder = store / name
    corpus = name.partition("/")[0]
    prepare = f"python data/prepare.py {corpus} --store {store}"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        present = sorted(str(path.parent.relative_to(store)) for path in store.glob(f"*/*/{MANIFEST}"))
        raise UserError(
            f"{store} holds no split {name!r} (it holds: {', '.join(present) or 'nothing'}); prepare it with: {prepare}"
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{folder / MANIFEST} isn't JSON ({error}); prepare this split again: {prepare}") from error
    if manifest.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{folder} has schema version {manifest.get('format_version')}, this code reads {FORMAT_VERSION}; "
            f"prepare it again: {prepare}"
        )
    return StoredSplit(folder, manifest)
