"""Exclusions: clips of a store that must not be trained on, because a held-out split contains the same recording.

There are three kinds: clips whose source, a Freesound or YouTube id, is also the source of a held-out recording of
another corpus; clips of crawled corpora whose source is in a published list; and optionally, clips that sound the same
as a held-out clip. The exclusions depend only on the contents of the store, not on the order in which corpora were
prepared.
"""

import csv
import io
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data import corpora
from data.errors import UserError
from data.schema import DUPLICATES, EXCLUSIONS, LISTED, SplitId
from data.sources.json_text import parse_json
from data.store.arrow_tables import open_table
from data.store.files import hash_json, write_arrow_table
from data.store.manifest import read_json_object
from data.store.storage import MANIFEST, Location, Store
from data.store.stored_split import StoredSplit, open_split

EXCLUSIONS_FILE = "exclusions.arrow"
LISTED_FILE = "listed.arrow"
DUPLICATES_FILE = "duplicates.arrow"

EXCLUDE_DUPLICATES = b"exclude_duplicates"
"""Metadata key of the table of duplicates: 'yes' if they are excluded from training."""

SPLIT_FINGERPRINTS = b"splits"
"""Metadata key of both tables: the fingerprints of all splits that were taken into account."""

JSON_SOURCES = {"AudioSet": "youtube", "FreeSound": "freesound"}
"""Kinds of sources by the keys of WavCaps' blacklists."""

ID_COLUMNS = ("sound_id", "freesound_id", "youtube_id", "id", "fname", "file_name")
"""Names of the id column of a CSV list, in order of preference; case is ignored."""

UNKNOWN_IDS = {"", "not found", "na"}
"""Entries of published lists that stand for an unknown id."""


@dataclass(frozen=True)
class SharedSource:
    """Recording, named by its source id such as 'freesound:ID', of which a training split and a held-out split of the
    same corpus both contain clips: the ids of these clips, and the number of captions of those in training.
    """

    source: str
    training_clip_ids: list[str]
    held_out_clip_ids: list[str]
    num_captions: int  # of the training clips


def read_store_table(store: Store, name: str, schema: pa.Schema) -> pa.Table:
    """Read a table that describes the store as a whole, such as exclusions.arrow; return an empty table with the
    columns of `schema` if the file doesn't exist. Raises UserError if it is damaged.
    """
    try:
        return open_table(store.read(name), f"{store}/{name}", "prepare a corpus of the store again", schema)
    except FileNotFoundError:
        return schema.empty_table()


def read_exclusions(location: Location) -> pa.Table:
    """Return the store's table of clips that are excluded from training, with the columns of
    `data.schema.EXCLUSIONS`. It is empty if no exclusions have been written.
    """
    return read_store_table(Store.of(location), EXCLUSIONS_FILE, EXCLUSIONS)


def read_excluded_ids(location: Location, splits: Sequence[str]) -> frozenset[str]:
    """Return the ids of clips of these splits, 'corpus/split', that are excluded from training.

    Raises UserError if the exclusions are outdated: computed before a split was added or its contents changed; also if
    duplicates are to be excluded but haven't been searched for since.
    """
    store = Store.of(location)
    table = read_exclusions(store)
    corpora_present = {SplitId.parse(name).corpus for name in store.list_splits()}
    if len(corpora_present) > 1 and not is_current(store, table):
        raise UserError(
            f"{store}: the exclusions don't match the splits in the store, because a preparation was interrupted "
            f"before it updated them: re-run that preparation"
        )
    duplicates = read_store_table(store, DUPLICATES_FILE, DUPLICATES)
    if has_exclude_flag(duplicates) and not is_current(store, duplicates):
        raise UserError(
            f"{store}: duplicates are to be excluded, but splits were prepared after the last search for them: run "
            f"`python data/prepare.py duplicates --exclude-duplicates --store {store}`"
        )
    rows = zip(table["split"].to_pylist(), table["clip_id"].to_pylist(), strict=True)
    return frozenset(clip_id for split, clip_id in rows if split in splits)


def compute_exclusions_fingerprint(location: Location, splits: Sequence[str]) -> str:
    """Return 16 hexadecimal digits that identify which clips of these splits are excluded from training."""
    return hash_json(sorted(read_excluded_ids(location, splits)))


def is_held_out(name: str) -> bool:
    """Return whether a split, 'corpus/split', is held out: its recordings must not occur in training."""
    split_id = SplitId.parse(name)
    return split_id.split in corpora.load(split_id.corpus).HELD_OUT


def update_exclusions(location: Location) -> pa.Table:
    """Compute which clips of a store must not be trained on, and write them as the store's table of exclusions,
    which replaces the previous one. Return the table.
    """
    store = Store.of(location)
    splits = [
        open_split(store, name) for name in store.list_splits() if SplitId.parse(name).corpus in corpora.list_names()
    ]
    table = pa.Table.from_pylist(
        sorted(find_exclusions(store, splits), key=lambda row: row["clip_id"]), schema=EXCLUSIONS
    )
    write_arrow_table(store.path / EXCLUSIONS_FILE, table.replace_schema_metadata(build_fingerprint_metadata(store)))
    return table


def build_fingerprint_metadata(store: Store) -> dict[bytes, bytes]:
    """Return Arrow metadata with the fingerprints of all splits in the store, by which `is_current` recognises
    whether a table was computed from their present contents.
    """
    return {SPLIT_FINGERPRINTS: json.dumps(read_fingerprints(store)).encode()}


def is_current(store: Store, table: pa.Table) -> bool:
    """Return whether a table was computed from the splits that the store holds now: its metadata contain exactly
    their names and fingerprints.
    """
    try:
        splits = parse_json((table.schema.metadata or {}).get(SPLIT_FINGERPRINTS, b"{}"))
    except ValueError:
        return False
    return bool(splits == read_fingerprints(store))


def read_fingerprints(store: Store) -> dict[str, str]:
    """Return the fingerprint of each split in a store by the split's name, as stated in its manifest; '' if the
    manifest states none.
    """
    manifests = {name: read_json_object(store, f"{name}/{MANIFEST}") for name in store.list_splits()}
    return {name: manifest.get("fingerprint", "") for name, manifest in manifests.items()}


def find_exclusions(store: Store, splits: Sequence[StoredSplit]) -> Iterator[dict[str, str]]:
    """Yield a row of the table of exclusions (`data.schema.EXCLUSIONS`) for each clip in `splits` that must not be
    trained on. The reason is the first that applies: its source is that of a held-out split of another corpus, a
    published list names it, or it sounds like a held-out clip.
    """
    held_out: dict[str, list[str]] = {}
    for split in splits:
        if is_held_out(split.name):
            for source in split.sources:
                held_out.setdefault(source, []).append(split.name)
    listed = map_columns(read_store_table(store, LISTED_FILE, LISTED), "source", "list")
    duplicates = read_store_table(store, DUPLICATES_FILE, DUPLICATES)
    originals = map_columns(duplicates, "clip_id", "held_out_clip_id") if has_exclude_flag(duplicates) else {}
    for split in splits:
        if split.manifest.clips_of:
            continue
        corpus = split.manifest.corpus
        split_by_source = {
            source: other
            for source, names in held_out.items()
            for other in names
            if SplitId.parse(other).corpus != corpus
        }
        lists = {} if corpora.load(corpus).HELD_OUT else listed  # lists apply to crawled corpora such as WavCaps
        for clip_id, source in map_columns(split.index, "clip_id", "source").items():
            reasons = (
                f"{source} is a source of {split_by_source[source]}" if source in split_by_source else "",
                f"{source} is listed in {lists[source]}" if source in lists else "",
                f"sounds like {originals[clip_id]}" if clip_id in originals else "",
            )
            if any(reasons):
                yield {"clip_id": clip_id, "split": split.name, "reason": next(filter(None, reasons))}


def find_shared_sources(splits: Sequence[StoredSplit]) -> Iterator[SharedSource]:
    """Yield each recording (source id) of which a training split and a held-out split of the same corpus both contain
    clips.

    The corpus was published with these recordings in both splits, and their clips aren't excluded from training.
    """
    with_clips = [split for split in splits if not split.manifest.clips_of]
    held_out: dict[tuple[str, str], list[str]] = {}
    for split in (split for split in with_clips if is_held_out(split.name)):
        for clip_id, source in map_columns(split.index, "clip_id", "source").items():
            held_out.setdefault((split.manifest.corpus, source), []).append(clip_id)
    training: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for split in (split for split in with_clips if not is_held_out(split.name)):
        counts = pc.list_value_length(split.index["captions"]).to_pylist()
        sources = map_columns(split.index, "clip_id", "source")
        for (clip_id, source), num_captions in zip(sources.items(), counts, strict=True):
            if source and (split.manifest.corpus, source) in held_out:
                training.setdefault((split.manifest.corpus, source), []).append((clip_id, num_captions))
    for key, clips in sorted(training.items()):
        clip_ids = [clip_id for clip_id, _ in clips]
        yield SharedSource(key[1], clip_ids, held_out[key], sum(num_captions for _, num_captions in clips))


def map_columns(table: pa.Table, keys: str, values: str) -> dict[str, str]:
    """Return a dictionary with an item for each row of a table: from its value in the column `keys` to its value in
    the column `values`.
    """
    return dict(zip(table[keys].to_pylist(), table[values].to_pylist(), strict=True))


def should_exclude_duplicates(location: Location) -> bool:
    """Return whether a store's duplicates are excluded from training, as chosen in the last search for them; False
    if they haven't been searched for.
    """
    return has_exclude_flag(read_store_table(Store.of(location), DUPLICATES_FILE, DUPLICATES))


def has_exclude_flag(duplicates: pa.Table) -> bool:
    """Return whether the metadata of a table of duplicates say that its clips are excluded from training."""
    return (duplicates.schema.metadata or {}).get(EXCLUDE_DUPLICATES) == b"yes"


def set_exclusion_lists(location: Location, paths: Sequence[Path], keep: bool) -> None:
    """Write the recording ids in the published lists `paths` into the store at `location`, as recordings to exclude
    from training. With `keep`, the ids written by earlier calls stay; without it, they are removed. Call
    `update_exclusions` afterwards, which computes the excluded clips from the ids.
    """
    store = Store.of(location)
    listed = read_store_table(store, LISTED_FILE, LISTED).to_pylist() if keep else []
    rows = {row["source"]: row["list"] for row in listed}
    for path in paths:
        rows |= dict.fromkeys(read_exclusion_list(path), path.name)
    table = pa.Table.from_pylist(
        [{"source": source, "list": name} for source, name in sorted(rows.items())], schema=LISTED
    )
    write_arrow_table(store.path / LISTED_FILE, table)


def read_exclusion_list(path: Path) -> set[str]:
    """Return the source ids, such as 'freesound:ID', in a published list: WavCaps' blacklist (JSON), a CSV file
    with a column of ids, or a text file with one id per line.

    Raises UserError if the file is absent or has another format, naming the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} isn't UTF-8; save it in that encoding") from None
    return set((read_json_list if text.lstrip().startswith(("{", "[")) else read_csv_list)(path, text))


def read_csv_list(path: Path, text: str) -> Iterator[str]:
    """Yield the source ids, such as 'freesound:ID', in the text of a CSV file with a column of ids, or of a file
    with one id per line. `path` is named in messages.
    """
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error as error:
        raise UserError(f"{path}: {error}") from None
    if not rows:
        raise UserError(f"{path} contains no ids")
    header = [cell.strip().lower() for cell in rows[0]]
    column = next((header.index(name) for name in ID_COLUMNS if name in header), None)
    if column is None and max(map(len, rows)) > 1:
        raise UserError(f"{path}: no column of ids; the header must contain one of: {', '.join(ID_COLUMNS)}")
    for number, row in enumerate(rows, start=1):
        if column is not None and number == 1:
            continue
        if len(row) <= (column or 0):
            raise UserError(f"{path}, row {number}: too short for column {header[column or 0]!r}, which holds the ids")
        if row[column or 0].strip().lower() not in UNKNOWN_IDS:
            yield parse_source_id(row[column or 0], f"{path}, row {number}")


def read_json_list(path: Path, text: str) -> Iterator[str]:
    """Yield the source ids, such as 'freesound:ID', in the text of a blacklist in WavCaps' format: {"AudioSet":
    [ids], "FreeSound": [ids]}. `path` is named in messages.
    """
    try:
        value = parse_json(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    except ValueError as error:  # a number with thousands of digits, or lists nested too deeply
        raise UserError(f"{path}: JSON that can't be parsed ({error})") from None
    for key, ids in value.items() if isinstance(value, dict) else [("ids", value)]:
        if key != "ids" and key not in JSON_SOURCES:
            raise UserError(f"{path}: unknown key {key!r}; known: {', '.join(JSON_SOURCES)}")
        if not isinstance(ids, list) or not all(isinstance(one, str | int) for one in ids):
            raise UserError(f"{path}: {key!r} must hold a list of ids")
        for number, one in enumerate(ids, start=1):
            if str(one).strip().lower() not in UNKNOWN_IDS:
                yield parse_source_id(str(one), f"{path}, {key}, id {number}", JSON_SOURCES.get(key))


def parse_source_id(text: str, origin: str, kind: str | None = None) -> str:
    """Convert an id as written in a published list to a source id: 'freesound:ID', 'youtube:ID', 'bbc:ID' or
    'soundbible:ID'. `kind` is 'freesound' or 'youtube' if the list says so. Raises UserError, whose message begins with
    `origin`, if the text isn't an id.

    Without a kind, up to ten digits are a Freesound id; eleven characters, or twelve that begin with Y, a YouTube id.

    Example:
        >>> parse_source_id("Y-1234567890.wav", "blacklist.csv, row 1")
        'youtube:-1234567890'
    """
    plain = re.sub(r"\.(wav|flac|mp3)$", "", text.strip())
    if match := re.fullmatch(r"freesound:(\d{1,10})", plain):
        plain, kind = match[1], "freesound"
    elif match := re.fullmatch(r"(freesound|youtube|bbc|soundbible):([!-~]+)", plain):
        return f"{match[1]}:{match[2]}"
    if kind != "youtube" and re.fullmatch(r"\d{1,10}", plain):
        return f"freesound:{int(plain)}"
    if kind != "freesound" and re.fullmatch(r"Y?[\w-]{11}", plain, re.ASCII):
        return f"youtube:{plain[-11:]}"
    raise UserError(
        f"{origin}: {text!r} is neither a Freesound nor a YouTube id; write other ids as bbc:ID or soundbible:ID"
    )


def select_pairs(split: StoredSplit, excluded: Collection[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs of a split whose clips aren't in `excluded` (clip ids), as two index arrays [num_pairs]: each
    pair's clip, a row of the split's index; and its caption, a position in the concatenated captions of all clips.
    """
    captions = split.index["captions"].combine_chunks()
    clips = captions.value_parent_indices().to_numpy()
    is_kept = np.ones(len(clips), bool)
    if excluded:
        is_excluded = pc.is_in(split.index["clip_id"], pa.array(list(excluded), pa.string())).to_numpy()
        is_kept = ~is_excluded[clips]
    return clips[is_kept].astype(np.int64), np.flatnonzero(is_kept)
