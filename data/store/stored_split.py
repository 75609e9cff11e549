"""Open a split of a store and read its clips, captions, queries and paraphrases.

Clips are located through the split's index, so that opening a split costs the same whatever the size of its audio, and
reading a clip touches only its own pages.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data import waveform
from data.errors import UserError
from data.schema import CLIPS, INDEX, PARAPHRASES, QUERIES, SKIPPED_ITEMS, SOURCES, Samples, SkippedItem
from data.store.arrow_tables import open_table
from data.store.manifest import Manifest, format_prepare_command, read_json_object, read_manifest
from data.store.storage import Location, Store
from data.waveform import AudioError, Codec

PARAPHRASES_FILE = "paraphrases.arrow"

CLIP_ID = r"^[^/]+/[^/]+/(?s:.)"
"""Beginning of a clip's id: 'corpus/split/' and a name."""

SCHEMAS = {"index": INDEX, "queries": QUERIES, "set_aside": SKIPPED_ITEMS, "sources": SOURCES}
"""Columns of a split's tables, by the field of the manifest that names the table's file."""

SUMMARY_KEYS = ("set_aside", "warnings")
"""Keys of the summary of a shard that are read: undecodable clips with reasons, and warnings about others; older stores
have no warnings.
"""


@dataclass(frozen=True)
class StoredSplit:
    """Split in a store: its manifest, and its tables memory-mapped. Create it with `open_split`."""

    store: Store
    manifest: Manifest
    clips_manifest: Manifest  # of the split whose clips are used: this one, unless `clips_of` names another

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredSplit, (self.store, self.manifest, self.clips_manifest)  # tables are mapped again when needed

    @property
    def name(self) -> str:
        """Name of the split, 'corpus/split'."""
        return str(self.manifest.split_id)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of clips, captions and queries: 16 hexadecimal digits."""
        return self.manifest.fingerprint

    @property
    def codec(self) -> Codec:
        """Codec of the audio, 'flac' or 'pcm16'."""
        return self.clips_manifest.codec

    @cached_property
    def index(self) -> pa.Table:
        """Clips without their audio, sorted by id, with the columns of `data.schema.INDEX`."""
        index = self.read_table("index", self.clips_manifest)
        require_valid_locations(index, self.clips_manifest, f"{self.store}/{self.name}")
        return index

    @cached_property
    def queries(self) -> pa.Table:
        """Queries, with the columns of `data.schema.QUERIES`."""
        return self.read_table("queries", self.manifest)

    @property
    def set_aside(self) -> list[SkippedItem]:
        """Skipped clips, rows and queries, with reasons."""
        return parse_skipped_items(self.read_table("set_aside", self.manifest))

    @property
    def clips_set_aside(self) -> list[SkippedItem]:
        """Skipped items, with reasons, of the split whose clips are used: this one, unless its manifest names another
        as `clips_of`.
        """
        return parse_skipped_items(self.read_table("set_aside", self.clips_manifest))

    def read_undecodable_clips(self) -> dict[str, str]:
        """Return the clips that couldn't be decoded when the split was prepared: the reason by clip id.

        Raises UserError if the summary of a shard is absent.
        """
        return {
            clip_id: reason for summary in self.read_summaries() for clip_id, reason in summary["set_aside"].items()
        }

    def read_warnings(self) -> dict[str, list[str]]:
        """Return the warnings about clips that were changed when they were decoded, by clip id.

        Raises UserError if the summary of a shard is absent.
        """
        return {
            clip_id: warnings
            for summary in self.read_summaries()
            for clip_id, warnings in summary.get("warnings", {}).items()  # absent in older stores
        }

    def read_summaries(self) -> list[dict[str, Any]]:
        """Return the summaries of the shards with the split's clips. Raises UserError if one is absent."""
        summaries = []
        for shard in self.clips_manifest.shards:
            name = self.clips_manifest.get_path(f"{Path(shard).with_suffix('.json')}")
            try:
                summary = read_json_object(self.store, name)
                summaries.append(
                    {key: require_dict(summary.get(key, {}), f"{self.store}/{name}: {key}") for key in SUMMARY_KEYS}
                )
            except FileNotFoundError:
                raise UserError(
                    f"{self.store}/{name} is absent: prepare this split again: "
                    f"{format_prepare_command(self.store, self.name)}"
                ) from None
        return summaries

    @property
    def sources(self) -> set[str]:
        """Source ids, such as 'freesound:ID', of all recordings that the corpus' tables list for the split,
        with or without an audio file.
        """
        return set(self.read_table("sources", self.manifest)["source"].to_pylist())

    def read_table(self, kind: str, manifest: Manifest) -> pa.Table:
        """Read a table of the split that `manifest` describes: this split, or the one whose clips it uses. `kind` is
        the field of the manifest that names the table's file, such as 'queries'. Raises UserError if it is damaged.
        """
        path = manifest.get_path(getattr(manifest, kind))
        return self.open_table(self.map(path), path, SCHEMAS[kind], optional=("kind", "file"))

    def map(self, path: str) -> pa.Buffer:
        """Return the contents of a file that the manifest names, memory-mapped. Raises UserError if it is absent or
        can't be read.
        """
        try:
            return self.store.map(path)
        except (OSError, pa.ArrowException) as error:
            raise UserError(self.explain_unreadable(path, error)) from error

    def map_files(self) -> None:
        """Map the tables and shards of the split into memory, without reading the shards. This process, and processes
        forked from it, can then read them even if the split is prepared again, which removes files that are no longer
        needed.

        Does nothing for an object store, where files are not removed. Raises UserError if a file is absent.
        """
        if self.store.is_remote:
            return
        names = (self.clips_manifest.index, *self.clips_manifest.shards)
        for path in (self.manifest.get_path(self.manifest.queries), *map(self.clips_manifest.get_path, names)):
            self.map(path)

    def explain_unreadable(self, path: str, error: Exception) -> str:
        """Return a message about an error of reading a file of the store, with the remedy."""
        reason = "is absent" if isinstance(error, FileNotFoundError) else f"can't be read: {error}"
        return f"{self.store}/{path} {reason}; {self.remedy}"

    @property
    def remedy(self) -> str:
        """The remedy for damaged files, for messages."""
        return f"prepare this split again: {format_prepare_command(self.store, self.name)}"

    def open_table(self, contents: pa.Buffer | bytes, path: str, schema: pa.Schema, **options: Any) -> pa.Table:
        """Return the table in a file of the store. Raises UserError if it is damaged or lacks columns of `schema`;
        `options` are those of `arrow_tables.open_table`.
        """
        return open_table(contents, f"{self.store}/{path}", self.remedy, schema, **options)

    def read_shard(self, number: int) -> pa.Table:
        """Return the clips of the shard with this number, including their audio, with the columns of
        `data.schema.CLIPS`. The audio isn't read. Raises UserError if the file is damaged.
        """
        path = self.get_shard_path(number)
        return self.open_table(self.map(path), path, CLIPS, unread="audio")

    def get_shard_path(self, number: int) -> str:
        """Return the path, relative to the store, of the shard with this number."""
        return self.clips_manifest.get_path(self.clips_manifest.shards[number])

    @cached_property
    def clip_ids(self) -> list[str]:
        """Ids of the clips, sorted."""
        return cast(list[str], self.index["clip_id"].to_pylist())

    @cached_property
    def captions(self) -> list[list[str]]:
        """Captions of each clip, in the order of `clip_ids`."""
        return cast(list[list[str]], self.index["captions"].to_pylist())

    @cached_property
    def num_samples(self) -> NDArray[np.int64]:
        """Number of samples of each clip, in the order of `clip_ids`."""
        return self._column("num_samples")

    @cached_property
    def _audio_positions(self) -> tuple[NDArray[np.int64], ...]:
        return self._column("shard"), self._column("offset"), self._column("num_bytes")

    def _column(self, name: str) -> NDArray[np.int64]:
        return cast(NDArray[np.int64], self.index[name].combine_chunks().to_numpy())

    def open_clip(self, clip: int) -> BinaryIO:
        """Open the encoded audio of a clip as a seekable file object. `clip` is an index into `clip_ids`. Raises
        UserError if the shard is absent or shorter.
        """
        shard, offset, num_bytes = (column[clip].item() for column in self._audio_positions)
        path = self.get_shard_path(shard)
        try:
            return self.store.open(path, offset, num_bytes)
        except (OSError, pa.ArrowException) as error:
            raise UserError(self.explain_unreadable(path, error)) from error

    def decode_window(self, clip: int, start: int, out: Samples) -> None:
        """Fill `out` with the samples of a clip from sample `start` on; `clip` is an index into `clip_ids`.
        Raises UserError if the audio is corrupt.
        """
        try:
            waveform.decode_window(self.open_clip(clip), self.codec, start, out)
        except AudioError as error:
            clip_id = self.index["clip_id"][clip].as_py()
            raise UserError(f"{self.store}/{self.name}: {clip_id}: {error}; prepare this split again") from error

    def read_window(self, clip: int, start: int, count: int) -> Samples:
        """Return `count` samples of a clip from sample `start` on; `clip` is an index into `clip_ids`."""
        samples = np.empty(count, np.float32)
        self.decode_window(clip, start, samples)
        return samples

    def read_paraphrases(self) -> dict[tuple[str, str], list[str]]:
        """Return the list of paraphrases of each caption, by clip id and caption hash
        (`data.captions.hash_caption`). Raises UserError if the split has none.
        """
        rows = self.require_paraphrases_table().select(["clip_id", "caption_hash", "variants"]).to_pylist()
        return {(row["clip_id"], row["caption_hash"]): row["variants"] for row in rows}

    def require_paraphrases_table(self) -> pa.Table:
        """Return the table of paraphrases (`data.schema.PARAPHRASES`). Raises UserError if the split has none."""
        table = self.read_paraphrases_table()
        if table is None or not len(table):
            raise UserError(
                f"{self.name} has no paraphrases ({self.store}/{self.name}/{PARAPHRASES_FILE} is "
                f"{'absent' if table is None else 'empty'}): set the paraphrase probability to 0, "
                f"or generate them: python data/paraphrase.py {self.manifest.corpus} --store {self.store}"
            )
        return table

    def read_paraphrases_table(self) -> pa.Table | None:
        """Return the table of paraphrases (`data.schema.PARAPHRASES`); None if the split has no such file."""
        try:
            contents = self.store.read(path := f"{self.name}/{PARAPHRASES_FILE}")
        except FileNotFoundError:
            return None
        return self.open_table(contents, path, PARAPHRASES, optional=("model", "instruction", "time"))

    def compute_paraphrases_fingerprint(self) -> str:
        """Return 16 hexadecimal digits that identify the contents of the paraphrases, independent of their order."""
        lines = sorted(json.dumps([*key, variants]) for key, variants in self.read_paraphrases().items())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def require_dict(value: Any, where: str) -> dict[str, Any]:
    """Return a value that is a dict. Raises UserError, whose message begins with `where`, for any other value."""
    if not isinstance(value, dict):
        raise UserError(f"{where} isn't a JSON object: prepare its split again")
    return value


def require_valid_locations(index: pa.Table, manifest: Manifest, where: str) -> None:
    """Raise UserError, whose message begins with `where`, if the id of a clip in a split's index doesn't contain the
    name of a file, or if the clip isn't in any of the split's shards.
    """
    is_valid = (
        pc.match_substring_regex(index["clip_id"], CLIP_ID),
        pc.and_(pc.greater_equal(index["shard"], 0), pc.less(index["shard"], len(manifest.shards))),
        *(pc.greater_equal(index[name], 0) for name in ("num_samples", "offset", "num_bytes")),
    )
    if not all(pc.all(condition, min_count=0).as_py() for condition in is_valid):
        raise UserError(f"{where}: its index has clips that aren't in its shards: prepare this split again")


ABSENT_SUFFIX = " is absent"
"""Ending of the reasons of absent files, in stores without a column `kind`."""


def parse_skipped_items(table: pa.Table) -> list[SkippedItem]:
    """Convert the rows of a table of skipped items to objects. If the table has no column `kind`, the kind is
    derived from the reason.
    """
    items = []
    for row in table.to_pylist():
        if "kind" not in row and row["reason"].endswith(ABSENT_SUFFIX):
            row |= {"kind": "absent", "file": Path(row["reason"].removesuffix(ABSENT_SUFFIX)).name}
        items.append(SkippedItem(**row))
    return items


def open_split(location: Location, name: str) -> StoredSplit:
    """Open a split of a store.

    Args:
        location: Folder or URI of the store, or a Store.
        name: Name of the split, 'corpus/split'.

    Raises:
        UserError: If the split doesn't exist or was written by another version of the schema, or if the split
            whose clips it uses has changed since.
    """
    store = Store.of(location)
    manifest = read_manifest(store, name)
    if not manifest.clips_of:
        return StoredSplit(store, manifest, manifest)
    clips_manifest = read_manifest(store, str(manifest.clips_split_id))
    if clips_manifest.fingerprint != manifest.clips_fingerprint:
        raise UserError(
            f"{store}/{name} was prepared for a different version of {clips_manifest.split_id}; "
            f"prepare it again: {format_prepare_command(store, name)}"
        )
    return StoredSplit(store, manifest, clips_manifest)
