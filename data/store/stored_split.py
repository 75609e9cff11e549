"""Open a split of a store.

A clip is found through the split's index, so that opening a split costs the same whatever its audio's size, and reading
a clip touches its own pages only.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data import waveform
from data.errors import UserError
from data.schema import Samples, SetAside
from data.store.manifest import Manifest, prepare_command, read_manifest
from data.store.storage import Location, Store
from data.waveform import AudioError, Codec

PARAPHRASES_FILE = "paraphrases.arrow"


@dataclass(frozen=True)
class StoredSplit:
    """A split that is there: its manifest, and its tables mapped into memory."""

    store: Store
    manifest: Manifest
    clips_manifest: Manifest  # of the split whose clips these are: mostly this one

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredSplit, (self.store, self.manifest, self.clips_manifest)  # tables are mapped anew

    @property
    def name(self) -> str:
        """'corpus/split'."""
        return str(self.manifest.split_id)

    @property
    def fingerprint(self) -> str:
        """Stands for the contents of clips, captions and queries."""
        return self.manifest.fingerprint

    @property
    def codec(self) -> Codec:
        """Of the audio."""
        return self.clips_manifest.codec

    @cached_property
    def index(self) -> pa.Table:
        """The clips without their audio, sorted by id, with the columns of `data.schema.INDEX`."""
        return self.table("index", self.clips_manifest)

    @cached_property
    def queries(self) -> pa.Table:
        """The queries, with the columns of `data.schema.QUERIES`."""
        return self.table("queries", self.manifest)

    @property
    def set_aside(self) -> list[SetAside]:
        """What couldn't be used, and why."""
        return set_aside_of(self.table("set_aside", self.manifest))

    @property
    def clips_set_aside(self) -> list[SetAside]:
        """What couldn't be used of the split whose clips this one has: of itself, unless it has another's."""
        return set_aside_of(self.table("set_aside", self.clips_manifest))

    def undecodable(self) -> dict[str, str]:
        """The clips whose files couldn't be decoded, by id, and why. A UserError where what says so is gone."""
        reasons: dict[str, str] = {}
        for shard in self.clips_manifest.shards:
            name = self.clips_manifest.path_of(f"{Path(shard).with_suffix('.json')}")
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

    def table(self, kind: str, manifest: Manifest) -> pa.Table:
        """Return one of a manifest's tables, by the field that names its file."""
        return pa.ipc.open_file(self.store.map(manifest.path_of(getattr(manifest, kind)))).read_all()

    def shard(self, number: int) -> pa.Table:
        """A shard's clips, with the columns of `data.schema.CLIPS`."""
        return pa.ipc.open_file(self.store.map(self.shard_path(number))).read_all()

    def shard_path(self, number: int) -> str:
        """A shard's file, from the store on."""
        return self.clips_manifest.path_of(self.clips_manifest.shards[number])

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
                f"or have them written: python data/paraphrase.py {self.manifest.corpus} --store {self.store}"
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


ABSENT = " is absent"
"""Ends the reasons of absent files in stores from before there were kinds."""


def set_aside_of(table: pa.Table) -> list[SetAside]:
    """Return the rows of a table of what couldn't be used; an older store's kinds are taken from the reasons."""
    found = []
    for row in table.to_pylist():
        if "kind" not in row and row["reason"].endswith(ABSENT):
            row |= {"kind": "absent", "file": Path(row["reason"].removesuffix(ABSENT)).name}
        found.append(SetAside(**row))
    return found


def open_split(location: Location, name: str) -> StoredSplit:
    """A split by name, 'corpus/split'.

    Raises UserError where it isn't there, or was written by another version of the schema, or where the split whose
    clips it asks for has changed since.
    """
    store = Store.of(location)
    manifest = read_manifest(store, name)
    if not manifest.clips_of:
        return StoredSplit(store, manifest, manifest)
    clips_manifest = read_manifest(store, str(manifest.clips_split_id))
    if clips_manifest.fingerprint != manifest.clips_fingerprint:
        raise UserError(
            f"{store}/{name} was prepared for other contents of {clips_manifest.split_id}; "
            f"prepare it again: {prepare_command(store, name)}"
        )
    return StoredSplit(store, manifest, clips_manifest)
