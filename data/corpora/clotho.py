"""Clotho v2.1: 15 to 30-s recordings from Freesound with five captions each, written by people.

Source: Zenodo 4783391. Captions: Tampere University licence, non-commercial; audio: Creative Commons, by file.
Published counts: 3,839 development, 1,045 validation and 1,045 evaluation clips (the paper counts 3,840, 1,045, 1,045).
In addition, Zenodo 6590983: the 1,000 recordings and 1,000 captions of the DCASE challenge, whose correspondence isn't
published; and the annotations of DCASE 2025: for each query, one or more evaluation clips that match it.

Layout, after extracting the archives beside the tables; challenge and annotations may be absent:

    {development,validation,evaluation}/*.wav      mono 44.1 kHz
    clotho_captions_{split}.csv                    UTF-8: file_name, caption_1 .. caption_5
    clotho_metadata_{split}.csv                    ISO-8859-1: file_name, keywords (by ';'), sound_id, sound_link,
                                                   license
    retrieval_audio/test/*.wav, or test/*.wav      the challenge's clips: the split `challenge`
    retrieval_captions.csv                         UTF-8: caption
    retrieval_audio_metadata.csv                   ISO-8859-1: file_name, keywords, sound_id
    metadata_eval.csv, or relevance_2025.csv       UTF-8: query, audio_filenames (a Python list of file names): the
                                                   split `evaluation_2025`, which uses the clips of evaluation

Quirks: file names contain `&amp;` and `&#39;`, commas, quotes, spaces before `.wav` and letters beyond ASCII, always
the same in tables and on disk (but disks differ in how they compose letters, and have `_` for the `: ` or ` : ` of
three names of the challenge); four names occur in two splits, some names differ only in case, and a few captions are
shared: a clip is identified by split and file name. A name that matches a file only without regard to case stands for
it if no other row does. `sound_id` may be "Not found" and `sound_link` "NA". A metadata table is optional and may lack
clips; the clips of the challenge are the files on disk, as no table of captions names them.

Stored as 16-bit PCM: 37 hours take 8.5 GB, and a random 30-s window then costs 0.2 ms of a core to read instead of 8 ms
as FLAC (measured), in each of hundreds of trials.
"""

import ast
import re
from collections.abc import Iterable
from pathlib import Path, PurePath

from data.errors import UserError
from data.schema import Query, SkippedItem, SourceClip, Split
from data.sources.csv_tables import CsvRow, read_csv, read_header, require_directory, require_source
from data.sources.file_names import FileMatcher, normalise_path
from data.sources.recordings import describe_file
from data.waveform import Codec

ROLES = {"train": "development", "validation": "validation", "test": "evaluation"}
PRETRAINING = ("development",)
HELD_OUT = ("validation", "evaluation", "challenge")
PUBLISHED = {"2.1": {"development": 3_839, "validation": 1_045, "evaluation": 1_045, "challenge": 1_000}}
CODEC: Codec = "pcm16"

CAPTION_COLUMNS = [f"caption_{number}" for number in range(1, 6)]
METADATA_COLUMNS = ["file_name", "keywords", "sound_id"]
RELEVANCE_TABLES = ("relevance_2025.csv", "metadata_eval.csv")
RELEVANCE_COLUMNS = ["query", "audio_filenames"]
CHALLENGE_FOLDERS = ("retrieval_audio/test", "test")

CLOTHO_URL = "https://zenodo.org/records/4783391/files"
CLOTHO_MD5 = {
    "clotho_audio_development.7z": "c8b05bc7acdb13895bb3c6a29608667e",
    "clotho_audio_validation.7z": "7dba730be08bada48bd15dc4e668df59",
    "clotho_audio_evaluation.7z": "4569624ccadf96223f19cb59fe4f849f",
    "clotho_captions_development.csv": "d4090b39ce9f2491908eebf4d5b09bae",
    "clotho_captions_validation.csv": "5879e023032b22a2c930aaa0528bead4",
    "clotho_captions_evaluation.csv": "1b16b9e57cf7bdb7f13a13802aeb57e2",
    "clotho_metadata_development.csv": "170d20935ecfdf161ce1bb154118cda5",
    "clotho_metadata_validation.csv": "2e010427c56b1ce6008b0f03f41048ce",
    "clotho_metadata_evaluation.csv": "13946f054d4e1bf48079813aac61bf77",
}
CHALLENGE_URL = "https://zenodo.org/records/6590983/files"
CHALLENGE_MD5 = {
    "retrieval_audio.7z": "24102395fd757c462421a483fba5c407",
    "retrieval_captions.csv": "f9e810118be00c64ea8cd7557816d4fe",
    "retrieval_audio_metadata.csv": "1301db07acbf1e4fabc467eb54e0d353",
}


def read(source: Path | None, seed: int = 0) -> list[Split]:
    """Read the splits of Clotho under `source`, without decoding audio: development, validation and evaluation,
    then `challenge` and `evaluation_2025` if their tables exist.

    Clips without a file are skipped; `seed` has no effect.
    """
    source = require_source(source, "clotho")
    splits = [read_split(source, split) for split in ROLES.values()]
    if (source / "retrieval_captions.csv").exists():
        splits.append(read_challenge(source))
    if rows := find_relevance_table(source):
        splits.append(read_relevance(source, rows))
    return splits


def read_split(source: Path, split: str) -> Split:
    """Read the split `split` in the corpus' folder `source` from its table of captions, its table of metadata if that
    exists, and the names of its audio files. Clips of the table without an audio file are skipped.
    """
    table = read_csv(source / f"clotho_captions_{split}.csv", ["file_name", *CAPTION_COLUMNS])
    folder = require_directory(source / split)
    matcher = FileMatcher((path.name for path in folder.iterdir() if path.is_file()), None, normalise_file_name)
    matches = matcher.match(row["file_name"] for row in table)
    metadata = read_metadata(source / f"clotho_metadata_{split}.csv")

    clips: dict[str, SourceClip] = {}
    set_aside = []
    origins: dict[str, str] = {}
    for row in table:
        name, form = row["file_name"], normalise_file_name(row["file_name"])
        if form in origins:
            raise UserError(f"{row.origin}: file_name {name!r} occurs twice (first in {origins[form]})")
        origins[form] = row.origin
        files = matches[name]
        if len(files) != 1:
            reason = matcher.explain_missing(name, files, folder)
            set_aside.append(SkippedItem(row.origin, reason, "unusable" if files else "absent", name))
            continue
        captions = tuple(row[column] for column in CAPTION_COLUMNS)
        clip_id = f"clotho/{split}/{PurePath(normalise_path(name)).name if '/' in normalise_path(name) else name}"
        clips[clip_id] = build_clip(clip_id, folder / files[0], captions, row.origin, metadata.get(form))
    if not clips:
        raise UserError(f"{folder} holds none of the {len(table)} files named in clotho_captions_{split}.csv")
    return Split(
        "clotho",
        split,
        tuple(clips.values()),
        set_aside=tuple(set_aside),
        sources=collect_sources(metadata.values()),
        num_listed=len(table),
    )


def read_challenge(source: Path) -> Split:
    """Read the split `challenge`: its clips are the audio files on disk, and its queries are the challenge's
    captions, whose relevant clips aren't published.
    """
    captions = read_csv(source / "retrieval_captions.csv", ["caption"])
    folders = [source / name for name in CHALLENGE_FOLDERS if (source / name).is_dir()]
    if not folders:
        raise UserError(
            f"{source / CHALLENGE_FOLDERS[0]} is absent: extract retrieval_audio.7z into {source / 'retrieval_audio'}, "
            f"or remove retrieval_captions.csv to leave out the challenge"
        )
    paths = {path.name: path for path in sorted(folders[0].iterdir()) if path.suffix.lower() == ".wav"}
    if not paths:
        raise UserError(f"{folders[0]} holds no .wav file: extract retrieval_audio.7z again")
    metadata = read_metadata(source / "retrieval_audio_metadata.csv")
    matcher = FileMatcher(paths, None, normalise_file_name)
    matches = matcher.match(row["file_name"] for row in metadata.values())
    rows_by_file = {files[0]: row for row in metadata.values() if len(files := matches[row["file_name"]]) == 1}
    set_aside = [
        SkippedItem(
            row.origin,
            matcher.explain_missing(row["file_name"], matches[row["file_name"]], folders[0]),
            "absent",
            row["file_name"],
        )
        for row in metadata.values()
        if len(matches[row["file_name"]]) != 1
    ]
    num_listed = len(paths) + len(set_aside)
    if metadata and (further := sorted(set(paths) - set(rows_by_file))):
        reason = f"{len(further)} files without a row in retrieval_audio_metadata.csv, such as {further[0]!r}: kept"
        set_aside.append(SkippedItem(str(folders[0]), reason))
    return Split(
        "clotho",
        "challenge",
        tuple(
            build_clip(f"clotho/challenge/{name}", path, (), "clotho/challenge", rows_by_file.get(name))
            for name, path in paths.items()
        ),
        set_aside=tuple(set_aside),
        queries=tuple(Query(row["caption"]) for row in captions),
        sources=collect_sources(metadata.values()),
        num_listed=num_listed,
    )


def read_relevance(source: Path, rows: list[CsvRow]) -> Split:
    """Return the split `evaluation_2025`: the queries of DCASE 2025 in `rows`, each with all clips of the evaluation
    split that match it. `source` is the corpus' folder, whose tables name these clips.

    When the store is written, clips whose file is absent or truncated are removed from their queries and logged, and so
    are queries without any clip left. Raises UserError for a name that the evaluation split doesn't contain.
    """
    table = read_csv(source / "clotho_captions_evaluation.csv", ["file_name"])
    listed = {normalise_file_name(row["file_name"]): row["file_name"] for row in table}
    queries = []
    for row in rows:
        names = []
        for name in parse_names(row):
            if normalise_file_name(name) not in listed:
                raise UserError(f"{row.origin}: {name!r} isn't a clip of clotho_captions_evaluation.csv")
            names.append(listed[normalise_file_name(name)])
        queries.append(Query(row["query"], tuple(f"clotho/evaluation/{name}" for name in names)))
    return Split("clotho", "evaluation_2025", (), queries=tuple(queries), clips_of="evaluation")


def find_relevance_table(source: Path) -> list[CsvRow]:
    """Return the rows of the table with the annotations of DCASE 2025, a CSV file in the folder `source` that is
    recognised by its name or its columns; [] if there is none.

    Raises UserError if a column is missing, or if several tables contain different annotations.
    """
    tables = {}
    for name in RELEVANCE_TABLES:
        path = source / name
        if path.exists() and (name == RELEVANCE_TABLES[0] or set(RELEVANCE_COLUMNS) & set(read_header(path))):
            tables[path] = read_csv(path, RELEVANCE_COLUMNS)
    contents = {tuple((row["query"], row["audio_filenames"]) for row in rows) for rows in tables.values()}
    if len(contents) > 1:
        raise UserError(f"{' and '.join(map(str, tables))} contain different annotations: remove one of them")
    return next(iter(tables.values()), [])


def parse_names(row: CsvRow) -> list[str]:
    """Return the file names in the column `audio_filenames` of a row of relevance_2025.csv, without repetitions.
    Raises UserError if the cell isn't a list of strings in Python syntax.
    """
    text = row["audio_filenames"]
    try:
        names = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # all errors that its documentation lists
        names = None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"{row.origin}: audio_filenames must be a list such as ['a.wav', 'b.wav'], but is {text[:80]!r}"
        )
    return list(dict.fromkeys(names))


def build_clip(clip_id: str, path: Path, captions: tuple[str, ...], origin: str, metadata: CsvRow | None) -> SourceClip:
    """Return the clip with these captions whose audio is in the file `path`. Its keywords, licence and source are taken
    from `metadata`, its row of the table of metadata, and are empty if that is None. `origin` is the table and row of
    the captions, for messages.
    """
    recording = describe_file(path)
    keywords = metadata.get_optional("keywords").split(";") if metadata else []
    return SourceClip(
        clip_id=clip_id,
        load=recording.load,
        captions=captions,
        origin=f"{origin}: {recording.location}",
        revision=recording.revision,
        num_bytes=recording.num_bytes,
        keywords=tuple(keyword.strip() for keyword in keywords if keyword.strip()),
        licence=metadata.get_optional("license") if metadata else "",
        source=get_source(metadata) if metadata else "",
    )


def normalise_file_name(name: str) -> str:
    """Return a file name of Clotho in one form, since names in its tables and on disk differ: normalised as by
    `normalise_path`, and with '_' in place of each colon that a space follows, and of the spaces around that colon.

    Example:
        >>> normalise_file_name("Intersection Wet : Metro Pass.wav")
        'Intersection Wet_Metro Pass.wav'
    """
    return re.sub(r"\s*:\s+", "_", normalise_path(name))


def read_metadata(path: Path) -> dict[str, CsvRow]:
    """Return the rows of a table of metadata by normalised file name; {} if the table doesn't exist. Raises
    UserError if a file name occurs twice.
    """
    rows: dict[str, CsvRow] = {}
    for row in read_csv(path, METADATA_COLUMNS, "iso-8859-1", METADATA_COLUMNS[1:]) if path.exists() else []:
        first = rows.setdefault(normalise_file_name(row["file_name"]), row)
        if first is not row:  # the source of one of them would be lost
            raise UserError(f"{row.origin}: file_name {row['file_name']!r} occurs twice (first in {first.origin})")
    return rows


def get_source(metadata: CsvRow) -> str:
    """Return the id of the Freesound recording that a clip was cut from, as 'freesound:ID'; '' if its row of
    metadata has none.
    """
    sound_id = metadata.get_optional("sound_id").strip()
    return f"freesound:{sound_id}" if sound_id.isdecimal() else ""


def collect_sources(metadata: Iterable[CsvRow]) -> frozenset[str]:
    """Return the ids ('freesound:ID') of all Freesound recordings in a table of metadata, including those of clips
    without an audio file.
    """
    return frozenset(filter(None, map(get_source, metadata)))


def download(target: Path) -> None:
    """Download Clotho and the DCASE challenge's recordings and captions from Zenodo into `target`, and extract the
    archives to the layout that `read` expects.
    """
    from data.sources import download as fetching

    fetching.fetch_files(CLOTHO_URL, CLOTHO_MD5, target)
    fetching.fetch_files(CHALLENGE_URL, CHALLENGE_MD5, target)
    for split in ROLES.values():
        fetching.extract_archive(target / f"clotho_audio_{split}.7z", target)
    fetching.extract_archive(target / "retrieval_audio.7z", target / "retrieval_audio")
