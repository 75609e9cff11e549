"""AudioCaps: 10-s excerpts of YouTube videos, taken from AudioSet and captioned by people.

Source: https://github.com/cdjkim/audiocaps (annotations, for academic use; the tables have no published checksums). The
audio belongs to the owners of the videos and isn't published: each user downloads it. Published counts of clips,
version 1 / version 2: 49,838 / 91,256 train with one caption each, 495 val and 975 test with five. Actual copies hold
fewer files (46,231 to 49,274 of the first were reported), as videos are taken down.

Layout:

    dataset/{train,val,test}.csv    version 1; dataset2.0/ is version 2, read if there is no dataset/; UTF-8:
                                    audiocap_id, youtube_id, start_time (s), caption; tables may be absent
    the audio files                 anywhere below, with any suffix that libsndfile reads, any rate, mono or stereo, as
                                    {youtube_id}, Y{youtube_id}, {youtube_id}_{start_time} or Y{youtube_id}_{start_time}

Quirks: ids may begin with `-`, and some differ only in case; a clip has as many rows as captions. If several files
match a clip, those named with the start time are preferred, then those in a folder named after the split; if several
remain, or if two clips match one file, the right one is unknown, and the clips are skipped.

Stored as 16-bit PCM: 142 hours (258 in version 2) take 33 GB (59), and a random 30-s window then costs 0.5 ms of a core
to read instead of 15 ms as FLAC (measured).
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from data.decoding.formats import HOW_TO_CONVERT
from data.errors import UserError
from data.schema import SkippedItem, SourceClip, Split
from data.sources.audio_files import list_files
from data.sources.csv_tables import CsvRow, read_csv, require_source
from data.sources.recordings import describe_file
from data.waveform import Codec

logger = logging.getLogger("chorale.audiocaps")

ROLES = {"train": "train", "validation": "val", "test": "test"}
PRETRAINING = ("train", "val", "test")
HELD_OUT = ("val", "test")
PUBLISHED = {
    "v1": {"train": 49_838, "val": 495, "test": 975},
    "v2": {"train": 91_256, "val": 495, "test": 975},
}
CODEC: Codec = "pcm16"

TABLE_FOLDERS = ("dataset", "dataset2.0")
"""Folders of the tables of versions 1 and 2, as in the authors' repository."""

COLUMNS = ["audiocap_id", "youtube_id", "start_time", "caption"]
ClipKey = tuple[str, str]
"""youtube_id and start_time of a clip."""


def read(source: Path | None, seed: int = 0) -> list[Split]:
    """Read the splits whose tables, dataset/SPLIT.csv, exist under `source`, without decoding audio. Clips without
    a file are skipped; `seed` has no effect.
    """
    source = require_source(source, "audiocaps")
    folder = find_table_folder(source)
    paths = {split: folder / f"{split}.csv" for split in ROLES.values()}
    tables = {split: read_csv(path, COLUMNS) for split, path in paths.items() if path.exists()}
    if not tables:
        raise UserError(f"{folder} holds none of {', '.join(path.name for path in paths.values())}")
    listing = list_files(source)  # a downloader may leave other files under the same name
    files, other_formats = group_by_stem(listing.paths), group_by_stem(listing.skipped)
    grouped = {split: group_rows(rows) for split, rows in tables.items()}
    candidates = {
        (split, key): find_files(source, files, split, key) for split, (clips, _) in grouped.items() for key in clips
    }
    claims: dict[Path, list[str]] = defaultdict(list)
    for (split, key), clip_files in candidates.items():
        for path in clip_files:
            claims[path].append(grouped[split][0][key][0].origin)
    absent = [
        SkippedItem(str(path), "is absent: its clips aren't known") for path in paths.values() if not path.exists()
    ]
    next(iter(grouped.values()))[1].extend(absent)
    splits = []
    for split, (rows_by_clip, set_aside) in grouped.items():
        clips = []
        for key, rows in rows_by_clip.items():
            clip_files = candidates[split, key]
            unread = find_files(source, other_formats, split, key)
            if reason := explain_unusable(source, key, clip_files or unread, claims, listing.skipped):
                set_aside.append(SkippedItem(rows[0].origin, reason))
            else:
                clips.append(build_clip(split, key, rows, clip_files[0]))
        listed = frozenset(f"youtube:{youtube_id}" for youtube_id, _ in rows_by_clip)
        splits.append(
            Split(
                "audiocaps",
                split,
                tuple(clips),
                set_aside=tuple(set_aside),
                sources=listed,
                num_listed=len(rows_by_clip),
            )
        )
    if not any(split.clips for split in splits):
        raise UserError(f"{source} holds no audio file that its tables name. {HOW_TO_GET_AUDIO}")
    return splits


def group_by_stem(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Return paths by the name of the file without its suffix."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        groups[path.stem].append(path)
    return groups


def find_table_folder(source: Path) -> Path:
    """Return the folder under `source` with the tables: those of version 1 of AudioCaps if they exist, otherwise those
    of version 2.
    """
    existing = [folder for name in TABLE_FOLDERS if (folder := source / name).is_dir()]
    if len(existing) > 1:
        logger.warning(
            "%s has the tables of versions 1 and 2: version 1 is read; to read version 2, rename %s",
            source,
            existing[0],
        )
    return existing[0] if existing else source / TABLE_FOLDERS[0]


def group_rows(rows: list[CsvRow]) -> tuple[dict[ClipKey, list[CsvRow]], list[SkippedItem]]:
    """Group the rows of a table by clip, that is by youtube_id and start_time. Return the rows of each clip by this
    pair of values, and the skipped rows: those that repeat the id and the caption of an earlier row of the same clip.
    """
    rows_by_clip: dict[ClipKey, dict[tuple[str, str], CsvRow]] = {}
    set_aside = []
    for row in rows:
        of_clip = rows_by_clip.setdefault((row["youtube_id"].strip(), row["start_time"].strip()), {})
        first = of_clip.setdefault((row["audiocap_id"], row["caption"]), row)
        if first is not row:
            set_aside.append(SkippedItem(row.origin, f"is the same as {first.origin}"))
    return {key: list(of_clip.values()) for key, of_clip in rows_by_clip.items()}, set_aside


def find_files(source: Path, files: dict[str, list[Path]], split: str, key: ClipKey) -> list[Path]:
    """Return the audio files that may hold the audio of the clip `key`, a YouTube id and a start time: none, one, or
    several if it isn't known which is the right one. `files` are all audio files under `source`, by their names without
    the suffix; those in a folder named after the split come first.
    """
    youtube_id, start_time = key
    for name in (f"{youtube_id}_{start_time}", youtube_id):
        if candidates := [*files.get(name, []), *files.get(f"Y{name}", [])]:
            return [path for path in candidates if split in path.relative_to(source).parts[:-1]] or candidates
    return []


def explain_unusable(
    source: Path, key: ClipKey, paths: list[Path], claims: dict[Path, list[str]], skipped: Mapping[Path, str]
) -> str:
    """Return the reason why a clip can't be used, '' if it can be: it has no audio file (`paths`), its file can't be
    decoded (`skipped`), several files could be its audio, or its file could be that of several clips (`claims`).

    Args:
        source: Folder of the corpus, for the message.
        key: Id and start time of the clip.
        paths: Files that may hold the clip's audio.
        claims: For each file, the rows of the clips whose audio it may hold.
        skipped: Why files can't be decoded.
    """
    if not paths:
        return f"{source} has no file {key[0]}.*, Y{key[0]}.* or the same with _{key[1]}"
    if paths[0] in skipped:
        return f"{paths[0]}: {skipped[paths[0]]}; {HOW_TO_CONVERT}"
    if len(paths) > 1:
        return f"several files could be its audio: {', '.join(map(str, paths))}"
    if len(claims[paths[0]]) > 1:
        return f"{paths[0]} could be the audio of several clips: {', '.join(claims[paths[0]])}; add _START to its name"
    return ""


def build_clip(split: str, key: ClipKey, rows: list[CsvRow], path: Path) -> SourceClip:
    """Return the clip whose captions are in `rows` and whose audio is in the file `path`. `key` is its YouTube id and
    start time.
    """
    recording = describe_file(path)
    return SourceClip(
        clip_id=f"audiocaps/{split}/{path.name}",
        load=recording.load,
        captions=tuple(row["caption"] for row in rows),
        origin=f"{rows[0].origin}: {recording.location}",
        revision=recording.revision,
        num_bytes=recording.num_bytes,
        source=f"youtube:{key[0]}",
        caption_origins=tuple(row.origin for row in rows),
    )


HOW_TO_GET_AUDIO = (
    "The audio of AudioCaps isn't published. Get dataset/train.csv, val.csv and test.csv from "
    "https://github.com/cdjkim/audiocaps; fetch 10 s from start_time on of each youtube_id, for instance with yt-dlp "
    "(--download-sections '*START-END' --extract-audio --audio-format wav), or ask the authors; save the files "
    "anywhere beside dataset/, each named YOUTUBE_ID.wav or YOUTUBE_ID_START.wav (flac, mp3 and ogg work as well)"
)


def download(target: Path) -> None:
    """Raise UserError with instructions to obtain the audio, which isn't published."""
    raise UserError(HOW_TO_GET_AUDIO)
