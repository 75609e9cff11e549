"""WavCaps: 403,050 recordings of four collections, with one caption each that ChatGPT wrote from raw descriptions.

Source: https://huggingface.co/datasets/cvssp/WavCaps, for academic use; the hub lists the files' SHA-256. Published
counts: 108,317 AudioSet_SL, 31,201 BBC_Sound_Effects, 262,300 FreeSound and 1,232 SoundBible, 1 s to 67,109 s (18 h 38
min) long. For pretraining only.

Layout, as published; subsets may be absent, and each may have its audio in either form:

    json_files/{subset}/*_final.json                {"data": [{"id", "caption", "duration", "tags", ...}, ...]}
    Zip_files/{subset}/*.zip                        FLAC, 32 kHz mono, named by id, in folders of the authors;
                                                    published split (.z01, .z02, ..., .zip), or joined; read in place
    {subset}_flac/**/*.flac, {subset}/**/*.flac     or extracted, also below Zip_files/{subset}/ or any other folder

Copies with MP3 audio (*.mp3 for *.flac, {subset}_mp3 for {subset}_flac) are read as well; of a recording that exists in
both formats, the FLAC file is read. Archives other than zip, such as NAME.7z.001, must be extracted first.

Quirks: ids of AudioSet are `Y{youtube_id}.wav`, their files `Y{youtube_id}.flac`; SoundBible's archive holds 1,320
files; some files are truncated, some rows have none. A recording that exists more than once is read from the first
location: archives by name, then extracted files. AudioSet_SL contains clips of AudioCaps, FreeSound sources of Clotho:
`data.leakage.exclusions` excludes them by their ids.

Stored as FLAC: 7,570 hours would be 1.7 TB of PCM, and are about half that as FLAC, though a random 30-s window then
costs 15 ms of a core to read instead of 0.5 ms (measured).
"""

import re
from collections import Counter
from pathlib import Path, PurePath
from typing import Any

from data.errors import UserError
from data.schema import SkippedItem, SourceClip, Split
from data.sources.archives import list_members
from data.sources.csv_tables import require_source
from data.sources.json_text import parse_json
from data.sources.recordings import Recording, describe_file, describe_member, iter_files
from data.waveform import Codec

TABLES = {
    "AudioSet_SL": "as_final.json",
    "BBC_Sound_Effects": "bbc_final.json",
    "FreeSound": "fsd_final.json",
    "SoundBible": "sb_final.json",
}
COLLECTIONS = {
    "AudioSet_SL": "youtube",
    "BBC_Sound_Effects": "bbc",
    "FreeSound": "freesound",
    "SoundBible": "soundbible",
}
"""Kinds of the ids of each subset."""

ROLES: dict[str, str] = {}
PRETRAINING = tuple(TABLES)
HELD_OUT: tuple[str, ...] = ()
PUBLISHED = {
    "final": {"AudioSet_SL": 108_317, "BBC_Sound_Effects": 31_201, "FreeSound": 262_300, "SoundBible": 1_232},
}
CODEC: Codec = "flac"

SUFFIXES = (".flac", ".mp3")
"""Suffixes of recordings, the preferred one first."""


def read(source: Path | None, seed: int = 0) -> list[Split]:
    """Read the subsets of WavCaps whose tables, json_files/SUBSET/*_final.json, exist under `source`; each subset
    is a split. Rows without audio are skipped; `seed` has no effect.
    """
    source = require_source(source, "wavcaps")
    paths = {subset: source / "json_files" / subset / name for subset, name in TABLES.items()}
    splits = [read_subset(source, subset, path) for subset, path in paths.items() if path.exists()]
    if not splits:
        raise UserError(f"{source} holds none of the tables: {', '.join(str(path) for path in paths.values())}")
    if not any(split.clips for split in splits):
        raise UserError(f"{source / 'Zip_files'} holds no recording that the tables in {source / 'json_files'} name")
    return splits


def read_subset(source: Path, subset: str, table: Path) -> Split:
    """Read a subset of WavCaps as a split: the rows of its JSON file `table`, matched with its recordings in archives
    and extracted files under `source`. Rows that are invalid or have no recording are skipped.
    """
    rows = read_rows(table)
    recordings, set_aside = find_recordings(source, subset)
    clips, listed = [], dict[str, str]()  # origin by the stem of the id
    missing = []
    for number, row in enumerate(rows, start=1):
        origin = f"{table}, row {number}"
        if problem := find_problem(row):
            set_aside.append(SkippedItem(origin, problem))
            continue
        stem = get_stem(row)
        if stem in listed:
            set_aside.append(SkippedItem(origin, f"id {row['id']!r} occurs twice (first in {listed[stem]})"))
            continue
        listed[stem] = origin
        if stem not in recordings:
            reason = f"{stem}.flac is absent: neither in an archive nor extracted"
            missing.append(SkippedItem(origin, reason, "absent", f"{stem}.flac"))
            continue
        clips.append(build_clip(subset, row, origin, recordings[stem]))
    if clips:
        set_aside += missing
    elif missing:
        set_aside.append(SkippedItem(str(table), f"none of the {len(missing)} recordings that it names exists"))
    if further := sorted(set(recordings) - set(listed)):
        example = recordings[further[0]].location
        set_aside.append(
            SkippedItem(subset, f"{len(further)} recordings without a row in {table}, such as {example!r}")
        )
    sources = frozenset(get_source(subset, stem) for stem in listed)
    return Split("wavcaps", subset, tuple(clips), set_aside=tuple(set_aside), sources=sources, num_listed=len(rows))


def list_roots(source: Path, subset: str) -> list[Path]:
    """Return the folders under `source` that may hold a subset's extracted recordings or archives, in order of
    preference; some may not exist.
    """
    names = (subset, f"{subset}_flac", f"{subset}_mp3")
    inside = [folder / name for folder in sorted(source.glob("*/")) for name in names if folder.name != "json_files"]
    return list(dict.fromkeys([source / "Zip_files" / subset, *(source / name for name in names), *inside]))


def read_rows(path: Path) -> list[Any]:
    """Return the rows of a subset's JSON table, whose contents aren't checked yet. Raises UserError if the file
    isn't JSON, or not an object with a list as "data".
    """
    try:
        value = parse_json(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); download it again") from None
    rows = value.get("data") if isinstance(value, dict) else None
    if not isinstance(rows, list):
        raise UserError(f'{path}: the table must be an object with a list of rows as "data"; download it again')
    return rows


def find_problem(row: Any) -> str:
    """Return the reason why a row of a table can't be used; '' if it can."""
    if not isinstance(row, dict):
        return "the row isn't an object"
    if not is_text(row.get("id")) and type(row.get("id")) is not int:
        return "id must be a non-empty string or an integer"
    return "" if is_text(row.get("caption")) else "caption must be a non-empty string"


def get_stem(row: dict[str, Any]) -> str:
    """Return the id of a row without its suffix (.wav or .flac), which is the stem of its file's name."""
    return re.sub(r"\.(wav|flac|mp3)$", "", str(row["id"]))


def is_text(value: Any) -> bool:
    """Return whether a value is a non-blank string without lone surrogates, which can't be encoded as UTF-8."""
    return isinstance(value, str) and bool(value.strip()) and not re.search("[\ud800-\udfff]", value)


def find_recordings(source: Path, subset: str) -> tuple[dict[str, Recording], list[SkippedItem]]:
    """Find the recordings of a subset under `source`, in archives and extracted files. Return them by file name without
    the suffix, and skipped items. If several recordings have the same name, FLAC is preferred to MP3, then archives to
    files.
    """
    recordings: dict[str, Recording] = {}
    set_aside = []
    folder = source / "Zip_files" / subset
    named_recordings: list[tuple[str, Recording]] = []
    for archive in sorted(folder.glob("*.zip")):
        for member in list_members(archive):
            name = member.info.filename
            if is_outside_archive(name):
                set_aside.append(SkippedItem(f"{archive}/{name}", "points outside the archive; not read"))
            elif PurePath(name).suffix in SUFFIXES:
                named_recordings.append((name, describe_member(member)))
    roots = [root for root in list_roots(source, subset) if root.is_dir()]
    paths = [path for root in roots for path in iter_files(root)]
    named_recordings += [(path.name, describe_file(path)) for path in paths if path.suffix in SUFFIXES]
    named_recordings.sort(key=lambda named: PurePath(named[0]).suffix != SUFFIXES[0])  # stable: FLAC first
    if unread := [path for path in paths if re.search(r"\.(7z|rar|tar|tgz|gz)(\.\d+)?$", path.name)]:
        set_aside.append(
            SkippedItem(subset, f"{len(unread)} archives aren't zip files, such as {str(unread[0])!r}: extract them")
        )
    counts = Counter[str]()
    for name, recording in named_recordings:
        stem = PurePath(name).stem
        recordings.setdefault(stem, recording)
        counts[stem] += 1
    if repeated := [stem for stem, number in counts.items() if number > 1]:
        location = recordings[repeated[0]].location
        set_aside.append(
            SkippedItem(
                subset, f"{len(repeated)} recordings exist more than once; the first is read, such as {location!r}"
            )
        )
    return recordings, set_aside


def is_outside_archive(name: str) -> bool:
    """Return whether the name of a file in an archive points outside the archive on any operating system, because
    it is absolute or contains '..'.
    """
    return bool(re.match(r"[/\\]|[A-Za-z]:", name)) or ".." in re.split(r"[/\\]", name)


def build_clip(subset: str, row: dict[str, Any], origin: str, recording: Recording) -> SourceClip:
    """Return the clip whose caption and keywords are in `row` of a subset's table and whose audio is `recording`.
    `origin` is the table and the number of the row, for messages.
    """
    keywords = row.get("tags") or row.get("category") or []
    return SourceClip(
        clip_id=f"wavcaps/{subset}/{row['id']}",
        load=recording.load,
        captions=(row["caption"],),
        origin=f"{origin}: {recording.location}",
        revision=recording.revision,
        num_bytes=recording.num_bytes,
        keywords=tuple(filter(is_text, keywords if isinstance(keywords, list) else [keywords])),
        source=get_source(subset, get_stem(row)),
    )


def get_source(subset: str, stem: str) -> str:
    """Return the source id of a clip, such as 'youtube:ID' or 'freesound:ID', from its subset and the stem of its
    file's name.
    """
    return f"{COLLECTIONS[subset]}:{stem.removeprefix('Y') if subset == 'AudioSet_SL' else stem}"


def download(target: Path) -> None:
    """Download all files of WavCaps (770 GB) from the Hugging Face Hub into `target`."""
    from data.sources import download as fetching

    fetching.fetch_dataset("cvssp/WavCaps", target)
