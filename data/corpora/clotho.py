"""Clotho v2.1: 15 to 30-s recordings from Freesound with five captions each, written by people.

Source: Zenodo 4783391. Captions: Tampere University licence, non-commercial; audio: Creative Commons, by file.
Published counts: 3,839 development, 1,045 validation and 1,045 evaluation clips (the paper counts 3,840, 1,045, 1,045).

Layout, after extracting the three archives beside the tables:

    {development,validation,evaluation}/*.wav      mono 44.1 kHz
    clotho_captions_{split}.csv                    UTF-8: file_name, caption_1 .. caption_5
    clotho_metadata_{split}.csv                    ISO-8859-1: file_name, keywords (by ';'), sound_id, sound_link,
                                                   license

Quirks: file names hold `&amp;` and `&#39;`, commas, quotes, blanks before `.wav` and letters beyond ASCII, always the
same in tables and on disk (but disks differ in how they compose letters); four names occur in two splits, some that
differ only in case, and a few captions are shared: a clip is keyed by split and file name. `sound_id` may be "Not
found" and `sound_link` "NA". A metadata table is optional and may lack clips.

MD5 of the published files, development / validation / evaluation:
    audio     c8b05bc7acdb13895bb3c6a29608667e 7dba730be08bada48bd15dc4e668df59 4569624ccadf96223f19cb59fe4f849f
    captions  d4090b39ce9f2491908eebf4d5b09bae 5879e023032b22a2c930aaa0528bead4 1b16b9e57cf7bdb7f13a13802aeb57e2
    metadata  170d20935ecfdf161ce1bb154118cda5 2e010427c56b1ce6008b0f03f41048ce 13946f054d4e1bf48079813aac61bf77
"""

import unicodedata
from functools import partial
from pathlib import Path

from data.errors import UserError
from data.schema import SetAside, SourceClip, Split
from data.tables import Row, read_csv, require_directory
from data.waveform import decode_file

ROLES = {"train": "development", "validation": "validation", "test": "evaluation"}
CAPTION_COLUMNS = [f"caption_{number}" for number in range(1, 6)]
METADATA_COLUMNS = ["file_name", "keywords", "sound_id", "license"]


def read(source: Path | None, seed: int = 0) -> list[Split]:
    """All three splits. Clips without a file are set aside; nothing is drawn, so `seed` changes nothing."""
    if source is None:
        raise UserError("clotho is read from files: name the directory of the published layout with --source")
    require_directory(source)
    return [read_split(source, split) for split in ROLES.values()]


def read_split(source: Path, split: str) -> Split:
    """One split: its captions, its metadata where there are any, and the recordings on disk."""
    table = read_csv(source / f"clotho_captions_{split}.csv", ["file_name", *CAPTION_COLUMNS])
    folder = require_directory(source / split)
    on_disk = {unicodedata.normalize("NFC", path.name): path for path in folder.iterdir()}
    metadata_path = source / f"clotho_metadata_{split}.csv"
    metadata = read_csv(metadata_path, METADATA_COLUMNS, encoding="iso-8859-1") if metadata_path.exists() else []
    metadata_by_name = {row["file_name"]: row for row in metadata}

    clips: dict[str, SourceClip] = {}
    set_aside = []
    for row in table:
        name = row["file_name"]
        clip_id = f"clotho/{split}/{name}"
        if clip_id in clips:
            raise UserError(f"{row.origin}: file_name {name!r} occurs twice (first in {clips[clip_id].origin})")
        path = on_disk.get(unicodedata.normalize("NFC", name))
        if path is None:
            set_aside.append(SetAside(row.origin, f"{folder / name} is absent"))
            continue
        clips[clip_id] = describe(clip_id, path, row, metadata_by_name.get(name))
    if not clips:
        raise UserError(f"{folder} holds none of the {len(table)} files named in clotho_captions_{split}.csv")
    return Split("clotho", split, tuple(clips.values()), set_aside=tuple(set_aside))


def describe(clip_id: str, path: Path, row: Row, metadata: Row | None) -> SourceClip:
    """A clip from its row of captions and, where there is one, its row of metadata."""
    keywords = metadata.optional("keywords").split(";") if metadata else []
    sound_id = metadata.optional("sound_id").strip() if metadata else ""
    return SourceClip(
        clip_id=clip_id,
        load=partial(decode_file, path),
        captions=tuple(row[column] for column in CAPTION_COLUMNS),
        origin=f"{row.origin}: {path}",
        keywords=tuple(keyword.strip() for keyword in keywords if keyword.strip()),
        licence=metadata.optional("license") if metadata else "",
        source=f"freesound:{sound_id}" if sound_id.isdigit() else "",
    )
