"""Tables of corpora as they are published and of users' own, lists of ids, and sentences to search for."""

import csv
import io
import json
import re
import unicodedata
from functools import partial

import numpy as np
import soundfile
from kinds import Kind
from mutations import mutate_table

from data import corpora
from data.errors import UserError
from data.leakage import exclusions
from data.schema import SAMPLE_RATE_HZ
from data.sources.file_names import fold_case

OUTSIDE_SAMPLES, OUTSIDE_BYTES = 78, 200
"""Of a recording beside a corpus, which no table may reach; all others are longer."""

CLOTHO_SPLITS = ("development", "validation", "evaluation")
CLOTHO_NAMES = ("Dog &amp; cat, no 1.wav", "Märkt .wav", "same.wav", "Same.wav")
CAPTIONS = ("A dog barks.", 'Someone says "go", twice', "Rain; wind", "Ein Märkt.", "a b")
AUDIOCAPS_IDS = {
    "train": ("-abcdefghi_", "Abcdefghijk", "abcdefghijk"),
    "val": ("0123456789a",),
    "test": ("zZ---__--Zz",),
}
WAVCAPS_IDS = {
    "AudioSet_SL/as_final.json": ("Yabcdefghijk.wav", "Y-bcdefghij_.wav"),
    "FreeSound/fsd_final.json": ("12", "345", "6789"),
}

Edits = list[tuple[bytes, bytes]]
"""What random edits seldom come upon: replaced, and by what."""

TABLES: dict[str, Edits] = {
    **{
        f"clotho/clotho_captions_{split}.csv": [(b"same.wav", "M\u0061\u0308rkt .wav".encode())]
        for split in CLOTHO_SPLITS
    },
    "clotho/clotho_metadata_development.csv": [(b"same.wav", b"Same.wav")],
    "clotho/retrieval_captions.csv": [],
    "clotho/retrieval_audio_metadata.csv": [(b"same.wav", b"Same.wav")],
    "clotho/relevance_2025.csv": [(b"['Same.wav']", b"{[]: 1}"), (b"['Same.wav']", b"[" * 100_000)],
    **{f"audiocaps/dataset/{split}.csv": [] for split in AUDIOCAPS_IDS},
    **{f"wavcaps/json_files/{table}": [(b"[{", b"[" * 100_000), (b"1.5", b"9" * 5_000)] for table in WAVCAPS_IDS},
    "folder/stated/table.csv": [(b"train", b"test"), (b"train", b"other")],
    "folder/drawn/table.csv": [(b"same.wav", "Märkt .wav".encode()), (b"below/same.wav", b"../outside.wav")],
}
LISTS: dict[str, tuple[bytes, Edits]] = {
    "blacklist.json": (
        b'{"AudioSet": ["Yabcdefghijk.wav", "-1234567890"], "FreeSound": [12, "345", "6789.flac"]}',
        [(b"12,", b"9" * 5_000 + b","), (b"[12", b"[" * 100_000), (b'"345"', rb'"bbc:\ud800"'), (b"12,", b"true,")],
    ),
    "dcase.csv": (
        b'sound_id,file_name\n12,"a, b.wav"\nNot found,c.wav\n345,"d.wav"\n6789,e.wav\n',
        [(b'b.wav"', b"b.wav"), (b"12,", b"x" * 140_000)],
    ),
    "late.csv": (b',file_name,fname\n0,"a ""b"" .wav",12\n1,c.wav,345\n', [(b",345", b"")]),
    "plain.txt": (b"12\nabcdefghijk\nbbc:NHU05000001\n345\n", [(b"345", b'"345')]),
}


SENTENCES = "rain on a roof\nEin Märkt\n\n...\na dog, then another\n".encode()


def build(root):
    """Write every corpus with a few short recordings, no two of them of the same length, and every list."""
    tree, lengths = root / "tree", iter(range(200, 400))

    def write_sound(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.zeros(next(lengths)), SAMPLE_RATE_HZ)

    write_clotho(tree / "clotho", write_sound)
    write_audiocaps(tree / "audiocaps", write_sound)
    write_wavcaps(tree / "wavcaps", write_sound)
    for kind, splits in (("stated", ["train", "train", "validation", "test"]), ("drawn", None)):
        names = [*CLOTHO_NAMES[:3], "below/same.wav"]
        for name in names:
            write_sound(tree / "folder" / kind / name)
        columns = {"file_name": names, "caption": CAPTIONS[:4]} | ({"split": splits} if splits else {})
        write_csv(tree / "folder" / kind / "table.csv", columns, zip(*columns.values(), strict=True))
    soundfile.write(tree / "outside.wav", np.zeros(OUTSIDE_SAMPLES), SAMPLE_RATE_HZ)
    kinds = {}
    for name, edits in TABLES.items():
        path, corpus = tree / name, name.partition("/")[0]
        source = path.parent if corpus == "folder" else tree / corpus
        read = partial(read_table, path, source, corpus)
        kinds[name] = Kind(path, read, partial(mutate_table, edits=edits, encoding=encoding_of(path)))
    for name, (contents, edits) in LISTS.items():
        (root / name).write_bytes(contents)
        kinds[name] = Kind(root / name, partial(read_list, root / name), partial(mutate_table, edits=edits))
    for name, encoding in (("sentences.txt", "utf-8"), ("sentences in UTF-16.txt", "utf-16")):
        (root / name).write_bytes(SENTENCES.decode().encode(encoding))
        read = partial(read_sentences, root / name)
        kinds[name] = Kind(root / name, read, partial(mutate_table, encoding=encoding))
    return kinds


def read_table(path, source, corpus, out):
    """Read a corpus; it names the table or the source if it refuses them, and otherwise loses none of its rows."""
    try:
        splits = corpora.load(corpus).read(source, 0)
    except UserError as error:
        assert path.name in str(error) or str(source) in str(error), error
        raise
    assert not (found := wrong_clips(splits) + lost_rows(path, splits)), found


def read_list(path, out):
    """Read a list of ids; it is named if it is refused, and otherwise every id in it is read."""
    try:
        sources = exclusions.read_exclusion_list(path)
    except UserError as error:
        assert path.name in str(error), error
        raise
    assert {plain_id(cell) for cell in listed_cells(path)} == {one.partition(":")[2] for one in sources}
    assert all(source.isprintable() for source in sources)


def read_sentences(path, out):
    """Read sentences; each is a line of text with a word."""
    from ensemble.search import iter_lines

    with path.open("rb") as file:
        for sentence in iter_lines(file):
            assert sentence == sentence.strip()
            assert any(unicodedata.category(character)[0] in "LN" for character in sentence)


def write_clotho(source, write_sound):
    sound_ids = iter(range(1, 100))
    metadata = ["file_name", "keywords", "sound_id", "license"]
    for split in CLOTHO_SPLITS:
        for name in CLOTHO_NAMES:
            write_sound(source / split / name)
        header = ["file_name", *(f"caption_{number}" for number in range(1, 6))]
        write_csv(source / f"clotho_captions_{split}.csv", header, [(name, *CAPTIONS) for name in CLOTHO_NAMES])
        rows = [(name, "dog; märkt", next(sound_ids), "CC0") for name in CLOTHO_NAMES]
        write_csv(source / f"clotho_metadata_{split}.csv", metadata, rows)
    for name in CLOTHO_NAMES:
        write_sound(source / "retrieval_audio" / "test" / name)
    write_csv(source / "retrieval_captions.csv", ["caption"], [(caption,) for caption in CAPTIONS])
    rows = [(name, "dog", next(sound_ids), "CC0") for name in CLOTHO_NAMES]
    write_csv(source / "retrieval_audio_metadata.csv", metadata, rows)
    rows = [(CAPTIONS[0], list(CLOTHO_NAMES[:3])), (CAPTIONS[1], list(CLOTHO_NAMES[3:]))]
    write_csv(source / "relevance_2025.csv", ["query", "audio_filenames"], rows)


def write_audiocaps(source, write_sound):
    """Four recordings named in each of the ways that occur."""
    names = iter(("{}_30.wav", "Y{}.wav", "{}.flac", "Y{}_30.flac", "{}.wav"))
    for split, ids in AUDIOCAPS_IDS.items():
        for youtube_id in ids:
            write_sound(source / "audio" / next(names).format(youtube_id))
        captions = CAPTIONS[:1] if split == "train" else CAPTIONS
        rows = [(number, youtube_id, 30, text) for youtube_id in ids for number, text in enumerate(captions)]
        write_csv(source / "dataset" / f"{split}.csv", ["audiocap_id", "youtube_id", "start_time", "caption"], rows)


def write_wavcaps(source, write_sound):
    for table, ids in WAVCAPS_IDS.items():
        path = source / "json_files" / table
        path.parent.mkdir(parents=True)
        data = [{"id": one, "caption": CAPTIONS[0], "duration": 1.5, "tags": ["dog"]} for one in ids]
        path.write_text(json.dumps({"num_captions_per_audio": 1, "data": data}), "utf-8")
        for one in ids:
            write_sound(source / f"{path.parent.name}_flac" / f"{one.removesuffix('.wav')}.flac")


def encoding_of(path):
    return "iso-8859-1" if "metadata" in path.name else "utf-8"


def write_csv(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding_of(path), newline="") as file:
        csv.writer(file).writerows([header, *rows])


def wrong_clips(splits):
    """What no clip may be, whatever the tables say."""
    clips = [clip for split in splits for clip in split.clips]
    found = []
    if len({clip.clip_id for clip in clips}) < len(clips):
        found.append("two clips have the same id")
    if len({clip.revision for clip in clips}) < len(clips):
        found.append("two clips are the same recording")
    if any(clip.num_bytes == OUTSIDE_BYTES for clip in clips):
        found.append("a recording outside of the source")
    return found + [
        f"odd id {clip.clip_id!r}"
        for split in splits
        for clip in split.clips
        if is_odd(clip.clip_id, f"{split.corpus}/{split.name}/")
    ]


def is_odd(clip_id, prefix):
    """Whether a clip id isn't of the form that is promised."""
    parts = clip_id.removeprefix(prefix).split("/")
    longest = 2 if prefix.startswith("folder/") else 1
    return not clip_id.startswith(prefix) or len(parts) > longest or re.search(r"(^|/)\.{0,2}(/|$)|[\n\r\0]", clip_id)


def lost_rows(path, splits):
    """What a table lists and the corpus neither has nor sets aside."""
    if path.suffix == ".json":
        return lost_json_rows(path, splits)
    text = path.read_bytes().decode(encoding_of(path)).removeprefix("\ufeff")
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows = [(f"{path}, line {reader.line_num}", row) for row in reader]
    if "metadata" in path.name:
        split = "development" if "development" in path.name else "challenge"
        return lost_sources([row for _, row in rows], next(one for one in splits if one.name == split))
    if path.name == "retrieval_captions.csv":
        return lost_queries([row["caption"] for _, row in rows], splits[3])
    if path.name == "relevance_2025.csv":
        return lost_queries([row["query"] for _, row in rows], splits[4])
    return lost_csv_rows(rows, splits)


def lost_sources(rows, split):
    """Ids that a table of metadata gives and its split doesn't."""
    ids = {row["sound_id"].strip() for row in rows}
    return sorted({f"freesound:{one}" for one in ids if one.isdecimal()} - split.sources)


def lost_queries(texts, split):
    """Whether queries are missing, or have other relevant clips than these corpora have: none, or some."""
    are_answered = {bool(query.relevant_clip_ids) for query in split.queries}
    is_whole = [query.text for query in split.queries] == texts and are_answered == {split.clips_of is not None}
    return [] if is_whole else ["queries were lost"]


def lost_csv_rows(rows, splits):
    """Rows that are neither in a clip nor set aside, by themselves or with their clip's first row."""
    corpus, first = splits[0].corpus, {}
    held = {
        (clip.source if corpus == "audiocaps" else fold_case(clip.clip_id.split("/", 2)[2]), caption)
        for split in splits
        for clip in split.clips
        for caption in clip.captions
    }
    aside = {aside.origin for split in splits for aside in split.set_aside}
    sources = {source for split in splits for source in split.sources}
    found = []
    for origin, row in rows:
        name = f"youtube:{row['youtube_id'].strip()}" if corpus == "audiocaps" else row["file_name"]
        key = (name, row.get("start_time", "").strip())
        first.setdefault(key, origin)
        captions = [row[column] for column in row if column and re.fullmatch(r"caption(_[1-5])?", column)]
        kept_as = name if corpus == "audiocaps" else fold_case(name)
        if not {(kept_as, caption) for caption in captions} <= held and not {origin, first[key]} & aside:
            found.append(f"lost: {origin}")
        if corpus == "audiocaps" and name not in sources:
            found.append(f"{name} isn't among the sources")
    return found


def lost_json_rows(path, splits):
    """Rows of a table of WavCaps that are neither a clip nor set aside."""
    split = next(split for split in splits if split.name == path.parent.name)
    clips = {clip.clip_id: clip for clip in split.clips}
    aside = {aside.origin for aside in split.set_aside}
    if str(path) in aside and not split.clips:
        return []
    found = []
    for number, row in enumerate(json.loads(path.read_bytes())["data"], start=1):
        clip = clips.get(f"wavcaps/{split.name}/{row['id']}") if isinstance(row, dict) and "id" in row else None
        if f"{path}, row {number}" not in aside and (clip is None or clip.captions != (row["caption"],)):
            found.append(f"lost: row {number}")
    return found


def listed_cells(path):
    """The ids that a list gives, as they stand there."""
    text = path.read_bytes().decode().removeprefix("\ufeff")
    if text.lstrip().startswith(("{", "[")):
        lists = json.loads(text)
        cells = [str(one) for ids in (lists.values() if isinstance(lists, dict) else [lists]) for one in ids]
    else:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
        header = [cell.strip().lower() for cell in rows[0]]
        column = next((header.index(one) for one in exclusions.ID_COLUMNS if one in header), None)
        cells = [row[column or 0] for row in rows[column is not None :]]
    return [cell for cell in cells if cell.strip().lower() not in exclusions.UNKNOWN_IDS]


def plain_id(cell):
    """An id without what its corpus writes around it."""
    plain, prefixed, rest = re.sub(r"\.(wav|flac|mp3)$", "", cell.strip()).partition(":")
    return rest if prefixed else str(int(plain)) if re.fullmatch(r"\d{1,10}", plain) else plain[-11:]
