"""User's own sound library: a folder of audio files and a table of captions.

Layout:

    *.csv            the only table, UTF-8: file_name, caption, and optionally split (train, validation or test)
    the audio files  anywhere below, in any format that libsndfile reads; file_name is the path relative to the folder

A name in another Unicode normalisation or case, with "./" or backslashes, or an absolute path that ends in the path of
a file is matched if only one file is possible (`data.sources.file_names`). A file may have several rows, one per
caption. Without a column `split`, files are split at random by the seed: 80, 10 and 10 %. No licence is recorded.
Stored as 16-bit PCM: a library of 100 hours takes 23 GB, and a random 30-s window of it costs 0.2 ms of a core to read
instead of 8 ms as FLAC (measured).
"""

import logging
from pathlib import Path

import numpy as np

from data.errors import UserError
from data.schema import SkippedItem, SourceClip, Split
from data.sources.audio_files import AudioListing, list_files
from data.sources.csv_tables import CsvRow, read_csv, require_source
from data.sources.file_names import FileMatcher
from data.sources.recordings import describe_file, find_encoding_problem
from data.waveform import Codec

logger = logging.getLogger("chorale.folder")

ROLES = {"train": "train", "validation": "validation", "test": "test"}
PRETRAINING = ("train",)
HELD_OUT = ("validation", "test")
PUBLISHED: dict[str, dict[str, int]] = {}
CODEC: Codec = "pcm16"

HELD_OUT_SHARE = 0.1
"""Share of files for validation, and the same for test, if the table has no column `split`."""


def read(source: Path | None, seed: int = 0) -> list[Split]:
    """Read the train, validation and test splits of the folder `source`, without decoding audio. Files that the
    table names but that don't exist are skipped. `seed` determines the splits if the table has no column `split`.
    """
    source = require_source(source, "folder")
    tables = sorted(source.glob("*.csv"))
    if len(tables) != 1:
        names = ", ".join(path.name for path in tables) or "none"
        raise UserError(f"{source} must hold one table (*.csv with the columns file_name, caption); found: {names}")
    rows = read_csv(tables[0], ["file_name", "caption"])
    listing = list_files(source)
    usable = [path for path in [*listing.paths, *listing.skipped, *listing.others] if not find_encoding_problem(path)]
    matcher = FileMatcher((path.relative_to(source).as_posix() for path in usable), source)
    matches = matcher.match(row["file_name"] for row in rows)
    rows_by_file: dict[str, list[CsvRow]] = {}  # by the name on disk, if there is one
    for row in rows:
        files = matches[row["file_name"]]
        rows_by_file.setdefault(files[0] if len(files) == 1 else row["file_name"], []).append(row)
    if "split" in rows[0].cells:
        split_by_file = read_stated_splits(rows_by_file)
    else:
        split_by_file = draw_splits(tables[0], list(rows_by_file), seed)
    splits = [read_split(source, split, rows_by_file, split_by_file, matcher, matches) for split in ROLES.values()]
    if not any(split.clips for split in splits):
        raise UserError(f"{source} holds none of the {len(rows_by_file)} files named in {tables[0].name}")
    report_further_files(source, tables[0], listing, set(rows_by_file))
    return splits


def report_further_files(source: Path, table: Path, listing: AudioListing, listed: set[str]) -> None:
    """Log a warning about the audio files in `listing` that the table doesn't name, and about those that can't be used.
    `source` is the corpus' folder, and `listed` the file names in the table.
    """

    def is_further(path: Path) -> bool:
        return path.relative_to(source).as_posix() not in listed

    further = [path for path in listing.paths if is_further(path)]
    if further:
        logger.warning("%d audio files have no row in %s, such as %s", len(further), table.name, further[0])
    skipped = {path: reason for path, reason in listing.skipped.items() if is_further(path)}
    AudioListing([], skipped, [path for path in listing.others if is_further(path) and path != table]).log_unusable(
        source
    )


def read_split(
    source: Path,
    split: str,
    rows_by_file: dict[str, list[CsvRow]],
    split_by_file: dict[str, str],
    matcher: FileMatcher,
    matches: dict[str, list[str]],
) -> Split:
    """Return the split `split` with a clip for each of its files. `rows_by_file` has the table's rows, which hold the
    captions, by file name, and `split_by_file` the split of each file. A name for which `matcher` has no file is
    skipped; `matches` has the files that it may stand for, which the reason mentions.
    """
    names = [name for name in rows_by_file if split_by_file[name] == split]
    clips, set_aside = [], []
    for name in names:
        rows = rows_by_file[name]
        if name not in matcher.exact:
            files = matches[name]
            reason = matcher.explain_missing(name, files, source)
            set_aside.append(SkippedItem(rows[0].origin, reason, "unusable" if files else "absent", name))
            continue
        recording = describe_file(source / name)
        clips.append(
            SourceClip(
                clip_id=f"folder/{split}/{name}",
                load=recording.load,
                captions=tuple(row["caption"] for row in rows),
                origin=f"{rows[0].origin}: {recording.location}",
                revision=recording.revision,
                num_bytes=recording.num_bytes,
                caption_origins=tuple(row.origin for row in rows),
            )
        )
    return Split("folder", split, tuple(clips), set_aside=tuple(set_aside), num_listed=len(names))


def read_stated_splits(rows_by_file: dict[str, list[CsvRow]]) -> dict[str, str]:
    """Return the split of each file, by file name, as stated in the column `split` of its rows. Raises UserError if
    a split is unknown or empty, or if the rows of a file name different splits.
    """
    stated = {}
    for name, rows in rows_by_file.items():
        for row in rows:
            if row["split"] not in ROLES.values():
                raise UserError(f"{row.origin}: split {row['split']!r} is none of {', '.join(ROLES.values())}")
            if row["split"] != rows[0]["split"]:
                raise UserError(f"{row.origin}: {name!r} is in {row['split']!r} here and in {rows[0]['split']!r} above")
        stated[name] = rows[0]["split"]
    return stated


def draw_splits(table: Path, names: list[str], seed: int) -> dict[str, str]:
    """Divide the files of a table into splits at random, and return the split of each file by its name. The division
    depends only on the seed and the set of names, not on their order. Raises UserError for a negative seed, or if there
    are fewer files than splits.
    """
    if seed < 0:
        raise UserError(f"seed={seed}: a seed must be at least 0; give another")
    if len(names) < len(ROLES):
        raise UserError(
            f"{table}: {len(names)} files can't be divided into {len(ROLES)} splits: add files, or a column 'split'"
        )
    held_out = max(1, round(HELD_OUT_SHARE * len(names)))
    order = np.random.default_rng(seed).permutation(sorted(names)).tolist()
    ends = {"validation": order[:held_out], "test": order[held_out : 2 * held_out]}
    drawn = dict.fromkeys(names, "train")
    for split, held in ends.items():
        drawn.update(dict.fromkeys(held, split))
    return drawn


def download(target: Path) -> None:
    """Raise UserError: there is nothing to download."""
    raise UserError("folder is your own library: there is nothing to download; name its folder with --source")
