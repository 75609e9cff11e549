"""WavCaps: 403,050 recordings from four collections, their raw descriptions rewritten as one caption each by ChatGPT.

Source: https://huggingface.co/datasets/cvssp/WavCaps, for academic use; the hub lists the files' SHA-256. Published
counts: 108,317 AudioSet_SL, 31,201 BBC_Sound_Effects, 262,300 FreeSound and 1,232 SoundBible, 1 s to 67,109 s (18 h 38
min) long. To pretrain on only.

Layout, as published; a subset may be absent, and so may be either form of its audio:

    json_files/{subset}/*_final.json                {"data": [{"id", "caption", "duration", "tags", ...}, ...]}
    Zip_files/{subset}/*.zip                        FLAC, 32 kHz mono, named by id, in directories of the authors';
                                                    published split (.z01, .z02, ..., .zip), or joined; read in place
    {subset}_flac/**/*.flac, {subset}/**/*.flac     or extracted, also below Zip_files/{subset}/

Quirks: ids of AudioSet are `Y{youtube_id}.wav`, their files `Y{youtube_id}.flac`; SoundBible's archive holds 1,320
files; some files are torn, some rows have none. A recording that is there more than once is read from the first place:
archives by name, then extracted files. AudioSet_SL holds clips of AudioCaps, FreeSound sources of Clotho:
`data.leakage.exclusions` knows them by their ids.

Kept as FLAC: 7,570 hours would be 1.7 TB of PCM, and are about half that as FLAC, though a random 30-s window then
costs 15 ms of a core to read instead of 0.5 ms (measured).
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.schema import SetAside, SourceClip, Split
from data.sources.archives import members
from data.sources.csv_tables import require_source
from data.sources.json_text import parse_json
from data.sources.recordings import Recording, files_below, of_file, of_member
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
"""Where a subset's ids are from."""

ROLES: dict[str, str] = {}
PRETRAINING = tuple(TABLES)
HELD_OUT: tuple[str, ...] = ()
PUBLISHED = {
    "final": {"AudioSet_SL": 108_317, "BBC_Sound_Effects": 31_201, "FreeSound": 262_300, "SoundBible": 1_232},
}
CODEC: Codec = "flac"


def read(source: Path | None, seed: int = 0) -> list[Split]:
    """The subsets whose tables are there. Rows without audio are set aside; `seed` changes nothing."""
    source = require_source(source, "wavcaps")
    paths = {subset: source / "json_files" / subset / name for subset, name in TABLES.items()}
    splits = [read_subset(source, subset, path) for subset, path in paths.items() if path.exists()]
    if not splits:
        raise UserError(f"{source} holds none of the tables: {', '.join(str(path) for path in paths.values())}")
    if not any(split.clips for split in splits):
        raise UserError(f"{source / 'Zip_files'} holds no recording that the tables in {source / 'json_files'} name")
    return splits


def read_subset(source: Path, subset: str, table: Path) -> Split:
    """One subset: its table, and its recordings in archives and files."""
    rows = read_table(table)
    recordings, set_aside = find_recordings(source, subset)
    clips, listed = [], dict[str, str]()  # by the stem of an id: where it stands
    missing = []
    for number, row in enumerate(rows, start=1):
        origin = f"{table}, row {number}"
        if problem := problem_of(row):
            set_aside.append(SetAside(origin, problem))
            continue
        stem = stem_of(row)
        if stem in listed:
            set_aside.append(SetAside(origin, f"id {row['id']!r} occurs twice (first in {listed[stem]})"))
            continue
        listed[stem] = origin
        if stem not in recordings:
            reason = f"{stem}.flac is absent: neither in an archive nor extracted"
            missing.append(SetAside(origin, reason, "absent", f"{stem}.flac"))
            continue
        clips.append(describe(subset, row, origin, recordings[stem]))
    if clips:
        set_aside += missing
    elif missing:
        set_aside.append(SetAside(str(table), f"none of the {len(missing)} recordings that it names is there"))
    if further := sorted(set(recordings) - set(listed)):
        example = recordings[further[0]].place
        set_aside.append(SetAside(subset, f"{len(further)} recordings without a row in {table}, as {example!r}"))
    sources = frozenset(source_of(subset, stem) for stem in listed)
    return Split("wavcaps", subset, tuple(clips), set_aside=tuple(set_aside), sources=sources, num_listed=len(rows))


def read_table(path: Path) -> list[Any]:
    """The rows of a table. Raises UserError for what isn't one."""
    try:
        value = parse_json(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); download it again") from None
    rows = value.get("data") if isinstance(value, dict) else None
    if not isinstance(rows, list):
        raise UserError(f'{path}: a table is an object with a list of rows as "data"; download it again')
    return rows


def problem_of(row: Any) -> str:
    """Why a row of a table can't be used; '' if it can."""
    if not isinstance(row, dict):
        return "the row isn't an object"
    if not is_text(row.get("id")) and type(row.get("id")) is not int:
        return "id must be some text or a whole number"
    return "" if is_text(row.get("caption")) else "caption must be some text"


def stem_of(row: dict[str, Any]) -> str:
    """A row's id as its file is named, without a suffix."""
    return re.sub(r"\.(wav|flac)$", "", str(row["id"]))


def is_text(value: Any) -> bool:
    """Whether a value is text that isn't blank and can be written as UTF-8, which half of a surrogate pair can't."""
    return isinstance(value, str) and bool(value.strip()) and not re.search("[\ud800-\udfff]", value)


def find_recordings(source: Path, subset: str) -> tuple[dict[str, Recording], list[SetAside]]:
    """A subset's recordings by the stem of their names, those in archives first, and what is wrong with others."""
    recordings: dict[str, Recording] = {}
    set_aside = []
    folder = source / "Zip_files" / subset
    found: list[tuple[str, Recording]] = []
    for archive in sorted(folder.glob("*.zip")):
        for member in members(archive):
            name = member.info.filename
            if is_outside(name):
                set_aside.append(SetAside(f"{archive}/{name}", "leads out of the archive; not read"))
            elif name.endswith(".flac"):
                found.append((name, of_member(member)))
    roots = [root for root in (folder, source / f"{subset}_flac", source / subset) if root.is_dir()]
    found += [(path.name, of_file(path)) for root in roots for path in files_below(root) if path.suffix == ".flac"]
    times = Counter[str]()
    for name, recording in found:
        stem = name.rpartition("/")[2].removesuffix(".flac")
        recordings.setdefault(stem, recording)
        times[stem] += 1
    if again := [stem for stem, number in times.items() if number > 1]:
        place = recordings[again[0]].place
        set_aside.append(
            SetAside(subset, f"{len(again)} recordings are there more than once; read from here: {place!r}")
        )
    return recordings, set_aside


def is_outside(name: str) -> bool:
    """Whether a member's name is absolute or leads upwards, on any system."""
    return bool(re.match(r"[/\\]|[A-Za-z]:", name)) or ".." in re.split(r"[/\\]", name)


def describe(subset: str, row: dict[str, Any], origin: str, recording: Recording) -> SourceClip:
    """A clip from its row and its recording."""
    keywords = row.get("tags") or row.get("category") or []
    return SourceClip(
        clip_id=f"wavcaps/{subset}/{row['id']}",
        load=recording.load,
        captions=(row["caption"],),
        origin=f"{origin}: {recording.place}",
        revision=recording.revision,
        num_bytes=recording.num_bytes,
        keywords=tuple(filter(is_text, keywords if isinstance(keywords, list) else [keywords])),
        source=source_of(subset, stem_of(row)),
    )


def source_of(subset: str, stem: str) -> str:
    """The recording that a clip is, by its id without a suffix."""
    return f"{COLLECTIONS[subset]}:{stem.removeprefix('Y') if subset == 'AudioSet_SL' else stem}"


def download(target: Path) -> None:
    """Fetch all of WavCaps from the Hugging Face hub: 770 GB."""
    from data.sources import download as fetching

    fetching.dataset("cvssp/WavCaps", target)
