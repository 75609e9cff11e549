"""Manifest of a split: the small file that describes the split and is written last."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dacite

from data.errors import UserError
from data.runtime.printable import require_bare_name
from data.schema import FORMAT_VERSION, SplitId
from data.sources.json_text import parse_json
from data.store.files import write_json
from data.store.storage import MANIFEST, Store
from data.waveform import Codec

FINGERPRINT = re.compile("[0-9a-f]{16}")
"""Form of a split's fingerprint."""


@dataclass(frozen=True)
class Manifest:
    """Manifest of a split: its format, its counts, its fingerprint, and the names of its files, which contain
    hashes of their contents.
    """

    format_version: int
    corpus: str
    split: str
    codec: Codec
    clips_of: str | None  # split of the same corpus whose clips the queries refer to; None: this split
    clips_fingerprint: str | None  # fingerprint of that split when this one was written
    queries_are_captions: bool
    num_listed: int  # number of clips listed in the corpus' tables
    num_clips: int
    num_queries: int
    num_samples: int
    num_set_aside: int
    fingerprint: str
    index: str
    queries: str
    set_aside: str
    sources: str
    shards: tuple[str, ...]

    @property
    def split_id(self) -> SplitId:
        """Name of the split, as corpus and split."""
        return SplitId(self.corpus, self.split)

    @property
    def clips_split_id(self) -> SplitId:
        """Name, as corpus and split, of the split whose clips are used: this one, unless the manifest's field
        `clips_of` names another split of the same corpus.
        """
        return SplitId(self.corpus, self.clips_of or self.split)

    def get_path(self, file: str) -> str:
        """Return the path of one of the split's files, relative to the store."""
        return f"{self.split_id}/{file}"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a manifest into a split's folder. From then on, the split exists for readers of the store."""
    write_json(folder / MANIFEST, dataclasses.asdict(manifest))


def read_manifest(store: Store, name: str) -> Manifest:
    """Read the manifest of the split `name`, 'corpus/split'.

    Raises UserError if the split doesn't exist, if it was written by another version of the schema, or if its manifest
    can't be read.
    """
    try:
        content = read_json_object(store, f"{name}/{MANIFEST}")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{store} holds no split {name!r} (it holds: {', '.join(store.list_splits()) or 'nothing'}); "
            f"prepare it with: {format_prepare_command(store, name)}"
        ) from None
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{store}/{name} has schema version {version}, but this code reads version {FORMAT_VERSION}; "
            f"prepare it again: {format_prepare_command(store, name)}"
        )
    try:
        manifest = dacite.from_dict(Manifest, content, dacite.Config(cast=[tuple]))
        require_own_names(manifest, name)
    except (dacite.DaciteError, UserError) as error:
        raise UserError(
            f"{store}/{name}/{MANIFEST}: {error}; prepare this split again: {format_prepare_command(store, name)}"
        ) from error
    return manifest


def read_json_object(store: Store, name: str) -> dict[str, Any]:
    """Return the content of a JSON file of a split: an object. `name` is its path relative to the store.

    Raises FileNotFoundError if the file doesn't exist, and UserError if it holds no JSON object.
    """
    try:
        content = parse_json(store.read(name))
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}")
    except ValueError as error:
        command = format_prepare_command(store, name)
        raise UserError(f"{store}/{name} isn't a JSON object ({error}); prepare this split again: {command}") from error
    return content


def require_own_names(manifest: Manifest, name: str) -> None:
    """Raise UserError unless a manifest names files in the folder of its split `name`, 'corpus/split', and its
    fingerprints consist of 16 hexadecimal digits: names and fingerprints become parts of paths.
    """
    if str(manifest.split_id) != name:
        raise UserError(f"it is the manifest of {str(manifest.split_id)!r}")
    files = (manifest.index, manifest.queries, manifest.set_aside, manifest.sources, *manifest.shards)
    for file in files if manifest.clips_of is None else (*files, manifest.clips_of):
        require_bare_name(file, "the name", "don't use a store that somebody else has edited")
    for fingerprint in filter(None, (manifest.fingerprint, manifest.clips_fingerprint)):
        if not FINGERPRINT.fullmatch(fingerprint):
            raise UserError(f"the fingerprint is {fingerprint!r}: it must consist of 16 lowercase hexadecimal digits")


def format_prepare_command(store: Store, name: str) -> str:
    """Return the command line that prepares the corpus of a split, 'corpus/split', for messages."""
    return f"python data/prepare.py {SplitId.parse(name).corpus} --store {store}"
