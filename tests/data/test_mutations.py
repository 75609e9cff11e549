"""Mutated tables and recordings are read without a loss or refused by name; nothing else ever happens.

Every mutation follows from a name and a number, which a failure gives.
"""

import csv
import io
import json
import random
import re
import resource
import subprocess
import sys
import unicodedata
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data import corpora
from data.decoding.audio import decode_file
from data.errors import UserError
from data.leakage import exclusions
from data.preparation import verify
from data.schema import SAMPLE_RATE_HZ
from data.sources.archives import decode_member, list_members
from data.sources.file_names import fold_case
from data.waveform import CODECS, AudioError

MUTATIONS_PER_TABLE = 80
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


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Every corpus with a few short recordings, no two of them of the same length."""
    root = tmp_path_factory.mktemp("tree")
    lengths = iter(range(200, 400))

    def write_sound(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.zeros(next(lengths)), SAMPLE_RATE_HZ)

    write_clotho(root / "clotho", write_sound)
    write_audiocaps(root / "audiocaps", write_sound)
    write_wavcaps(root / "wavcaps", write_sound)
    for kind, splits in (("stated", ["train", "train", "validation", "test"]), ("drawn", None)):
        names = [*CLOTHO_NAMES[:3], "below/same.wav"]
        for name in names:
            write_sound(root / "folder" / kind / name)
        columns = {"file_name": names, "caption": CAPTIONS[:4]} | ({"split": splits} if splits else {})
        write_csv(root / "folder" / kind / "table.csv", columns, zip(*columns.values(), strict=True))
    soundfile.write(root / "outside.wav", np.zeros(OUTSIDE_SAMPLES), SAMPLE_RATE_HZ)
    return root


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


TROUBLE = (
    *(b'"', b",", b"\n", b"\r", b"\0", b"\xff", b"\xc3", b"\xef\xbb\xbf", b"/", b"../outside.wav", b"/etc/hostname"),
    *(b"null", b"NaN", b"-1", b"1e999", b"true", b"{}", b"[]", b"{[]: 1}", rb"\ud800", rb"\u0000", b"Not found"),
    *(b"[" * 100_000, b"9" * 5_000, b"x" * 140_000),
)


def mutated_table(contents, rng, encoding="utf-8"):
    """One to three edits of bytes, of cells or of lines."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        edit = rng.choice((mutated_bytes, mutated_cell, mutated_lines))
        contents = edit(contents, rng, encoding)
    return contents


def mutated_bytes(contents, rng, _):
    start = rng.randrange(len(contents) + 1)
    end = min(len(contents), start + rng.choice((0, 1, 1, 5, 50)))
    flipped = bytes(byte ^ 1 << rng.randrange(8) for byte in contents[start : start + 1])
    return rng.choice(
        (
            contents[:start],
            contents[:start] + contents[end:],
            contents[:start] + flipped + contents[start + 1 :],
            contents[:start] + rng.choice(TROUBLE) + contents[end:],
            contents[:start] + contents[start:end] * 2 + contents[end:],
        )
    )


def mutated_cell(contents, rng, _):
    cells = re.split(rng.choice((rb'([,"\n\[\]{}:]+)', rb"(,(?! )|[\r\n]+)")), contents)
    place, other = rng.randrange(len(cells)), rng.randrange(len(cells))
    cells[place] = rng.choice((b"", cells[place].swapcase(), cells[other], rng.choice(TROUBLE)))
    return b"".join(cells)


def mutated_lines(contents, rng, encoding):
    """Lines, or rows of a JSON table: taken away, exchanged, or there twice, with a difference in writing or none."""
    parts = re.split(rb"(?<=\n)|(?<=\}), ", contents)
    place, other = rng.randrange(len(parts)), rng.randrange(len(parts))
    text = parts[place].decode(encoding, "replace")
    decomposed = unicodedata.normalize("NFD", text).encode(encoding, "replace")
    line = rng.choice((b"", parts[other], *(parts[place] + again for again in (parts[place], parts[place].swapcase()))))
    parts[place] = rng.choice((line, parts[place] + decomposed))
    return (b", " if b"}, " in contents else b"").join(parts)


def mutations_of(contents, edits, name, encoding="utf-8"):
    """The contents as they are, with each of the edits, and with random ones."""
    yield contents
    yield from (contents.replace(*edit) for edit in edits)
    yield from (
        mutated_table(contents, random.Random(f"{name} {number}"), encoding) for number in range(MUTATIONS_PER_TABLE)
    )


@pytest.mark.parametrize(("table", "edits"), TABLES.items(), ids=TABLES)
def test_a_mutated_table_is_refused_by_name_or_read_without_a_loss(table, edits, tree):
    path, corpus = tree / table, table.partition("/")[0]
    source = path.parent if corpus == "folder" else tree / corpus
    contents = path.read_bytes()
    num_read = 0
    try:
        for number, mutation in enumerate(mutations_of(contents, edits, table, encoding_of(path))):
            path.write_bytes(mutation)
            try:
                splits = corpora.load(corpus).read(source, 0)
                found = wrong_clips(splits) + lost_rows(path, splits)
                num_read += 1
            except UserError as error:
                found = [] if number and (path.name in str(error) or str(source) in str(error)) else [str(error)]
            except Exception as error:
                raise AssertionError(f"mutation {number}: {mutation[:2_000]!r}") from error
            assert not found, f"mutation {number}: {mutation[:2_000]!r}"
    finally:
        path.write_bytes(contents)
    assert 1 < num_read < MUTATIONS_PER_TABLE


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


@pytest.mark.parametrize(("name", "contents", "edits"), [(name, *found) for name, found in LISTS.items()], ids=LISTS)
def test_a_mutated_list_is_refused_by_name_or_read_without_a_loss(name, contents, edits, tmp_path):
    path = tmp_path / name
    num_read = 0
    for number, mutation in enumerate(mutations_of(contents, edits, name)):
        path.write_bytes(mutation)
        try:
            sources = exclusions.read_exclusion_list(path)
            is_whole = {plain_id(cell) for cell in listed_cells(path)} == {one.partition(":")[2] for one in sources}
            is_whole &= all(source.isprintable() for source in sources)
            num_read += 1
        except UserError as error:
            is_whole = number > 0 and name in str(error)
        except Exception as error:
            raise AssertionError(f"mutation {number}: {mutation[:2_000]!r}") from error
        assert is_whole, f"mutation {number}: {mutation[:2_000]!r}"
    assert 1 < num_read < MUTATIONS_PER_TABLE


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


FORMATS = {
    "pcm16.wav": ("WAV", "PCM_16", 1),
    "pcm24.wav": ("WAVEX", "PCM_24", 2),
    "float.wav": ("WAV", "FLOAT", 1),
    "adpcm.wav": ("WAV", "MS_ADPCM", 1),
    "mono.flac": ("FLAC", "PCM_16", 1),
    "stereo.flac": ("FLAC", "PCM_24", 2),
    "vorbis.ogg": ("OGG", "VORBIS", 2),
    "opus.ogg": ("OGG", "OPUS", 1),
    "sound.mp3": ("MP3", "MPEG_LAYER_III", 1),
    "pcm16.aiff": ("AIFF", "PCM_16", 1),
    "float.aifc": ("AIFF", "FLOAT", 2),
    "sound.au": ("AU", "PCM_16", 1),
    "sound.caf": ("CAF", "ALAC_16", 1),
    "sound.w64": ("W64", "PCM_16", 1),
    "sound.rf64": ("RF64", "PCM_16", 1),
}
HEADER_BYTES = 48
PATTERNS = [bytes(4), b"\xff" * 4, *(value.to_bytes(4, order) for value in (1, 255) for order in ("little", "big"))]
FIELDS = [(place, width, pattern) for place in range(0, HEADER_BYTES, 2) for width in (2, 4) for pattern in PATTERNS]
"""Every field of the simple headers is one of these: sizes, rates and counts become 0, 1, 255 and 2^32 - 1."""
MUTATIONS_PER_FILE = len(FIELDS) + 100


def mutated_audio(contents, number, name):
    """The first mutations overwrite one field of the header each, the others make one to four random edits."""
    if number < len(FIELDS):
        place, width, pattern = FIELDS[number]
        field = pattern[:width] if pattern[0] else pattern[-width:]
        return contents[:place] + field + contents[place + width :]
    rng = random.Random(f"{name} {number}")
    edited = bytearray(contents)
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(rng.choice((64, 256, len(contents))))
        other, width = rng.randrange(len(contents)), rng.choice((1, 4, 8, 16))
        match rng.randrange(6):
            case 0:
                edited[place : place + 1] = bytes(byte ^ 1 << rng.randrange(8) for byte in edited[place : place + 1])
            case 1:
                edited[place : place + width] = rng.randbytes(width)
            case 2:
                del edited[place:]
            case 3:
                del edited[place : place + width]
            case 4:
                edited[place:place] = rng.randbytes(width)
            case 5:  # chunks exchanged
                one, two = edited[place : place + width], edited[other : other + width]
                edited[place : place + width], edited[other : other + width] = two, one
    return bytes(edited)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A tenth of a second in each format, and an archive of two."""
    folder = tmp_path_factory.mktemp("recordings")
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (3_200, 2))
    for name, (kind, subtype, channels) in FORMATS.items():
        rate_hz = {"OPUS": 48_000, "MPEG_LAYER_III": 44_100}.get(subtype, SAMPLE_RATE_HZ)
        soundfile.write(folder / name, noise[:, :channels], rate_hz, format=kind, subtype=subtype)
    with zipfile.ZipFile(folder / "archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("mono.flac", "float.wav"):
            archive.write(folder / name, name)
    return folder


def test_a_mutated_recording_is_refused_or_decoded_and_never_brings_the_process_down(recordings, tmp_path):
    command = [sys.executable, "-W", "error", __file__, recordings, tmp_path / "mutation"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stderr[-1_000:]  # it ends with the mutation that did it
    assert "Traceback" not in done.stderr, done.stderr[done.stderr.index("Traceback") - 300 :][:3_000]
    num_decoded, num_refused = map(int, done.stdout.split())
    assert num_decoded + num_refused == (len(FORMATS) + 1) * MUTATIONS_PER_FILE
    assert min(num_decoded, num_refused) > 1_000


def decode_mutations(recordings, path):
    """Decode every mutation of some recordings, each written to `path`; what goes wrong ends the process."""
    for recording in sorted(recordings.iterdir()):
        decode_all(recording)
    most = 2 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts = [0, 0]
    for recording in sorted(recordings.iterdir()):
        contents = recording.read_bytes()
        for number in range(MUTATIONS_PER_FILE):
            sys.stderr.write(f"{recording.name}, mutation {number}\n")
            mutation = path.with_suffix(recording.suffix)
            mutation.write_bytes(mutated_audio(contents, number, recording.name))
            try:
                decode_all(mutation)
                counts[0] += 1
            except (AudioError, UserError) as error:
                counts[1] += 1
                if re.search("0x[0-9a-f]{6}", str(error)):
                    raise AssertionError("the reason differs from process to process") from error
            if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > most:
                raise MemoryError("more than twice the memory that whole recordings take")
    sys.stdout.write("{} {}\n".format(*counts))


def decode_all(path):
    """Decode a recording, or each of an archive's."""
    for blocks in [decode_file(path)] if path.suffix != ".zip" else map(decode_member, list_members(path)):
        for block in blocks:
            assert block.dtype == np.float32
            assert block.ndim == 1
            assert np.isfinite(block).all()


@pytest.mark.parametrize("name", FORMATS)
def test_a_recording_cut_anywhere_is_refused(name, recordings, tmp_path):
    contents = (recordings / name).read_bytes()
    for size in range(0, len(contents) - 16, len(contents) // 20):
        (tmp_path / name).write_bytes(contents[:size])
        with pytest.raises(AudioError):
            decode_all(tmp_path / name)


@pytest.mark.parametrize("number", range(30))
def test_a_split_with_mutated_recordings_holds_all_good_ones_and_is_valid(
    number, recordings, make_clip, noise, write_split, tmp_path
):
    rng = random.Random(number)
    good = [make_clip(f"good{index}", noise(0.05, seed=index)) for index in range(3)]
    bad = []
    for name in rng.sample(sorted(FORMATS), 3):
        path = tmp_path / name
        path.write_bytes(mutated_audio((recordings / name).read_bytes(), rng.randrange(MUTATIONS_PER_FILE), name))
        bad.append(make_clip(name, partial(decode_file, path)))
    clips = rng.sample(good + bad, 6)
    split = write_split(clips, codec=CODECS[number % 2])
    assert verify.check_tables(split) == []
    assert [verify.check_shard(split, shard) for shard in range(3)] == [[]] * 3
    aside = {one.origin for one in split.set_aside}
    assert sorted(split.clip_ids) == sorted(clip.clip_id for clip in clips if clip.origin not in aside)
    for index, clip in enumerate(good):
        stored = split.clip_ids.index(clip.clip_id)
        np.testing.assert_array_equal(split.read_window(stored, 0, split.num_samples[stored]), noise(0.05, seed=index))


if __name__ == "__main__":
    decode_mutations(*map(Path, sys.argv[1:]))
