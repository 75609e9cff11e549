"""Clotho: as it is published, and with what may be wrong with a copy of it."""

import csv
import hashlib
import shutil
import unicodedata
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import py7zr
import pytest

from data.corpora import clotho
from data.errors import UserError
from data.schema import Query

SPLITS = ("development", "validation", "evaluation")


@pytest.fixture
def tiny_clotho(tmp_path, write_audio):
    """Two clips a split in the published layout, in which a test breaks something."""
    for split in SPLITS:
        names = [f"{split} dog.wav", "Same name.wav"]
        for name in names:
            write_audio(tmp_path / split / name)
        captions = [{"file_name": name} | {f"caption_{n}": f"Caption {n}." for n in range(1, 6)} for name in names]
        sources = ["1234", "Not found"]
        metadata = [
            {"file_name": name, "keywords": "dog; märkt ;", "sound_id": sound_id, "license": "CC0"}
            for name, sound_id in zip(names, sources, strict=True)
        ]
        write_csv(tmp_path / f"clotho_captions_{split}.csv", captions, "utf-8")
        write_csv(tmp_path / f"clotho_metadata_{split}.csv", metadata, "iso-8859-1")
    return tmp_path


def write_csv(path, rows, encoding):
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_counts_are_those_of_the_tables_and_folders(published_clotho):
    splits = clotho.read(published_clotho)[:3]
    assert [split.name for split in splits] == list(SPLITS)
    assert set(clotho.ROLES.values()) == set(SPLITS)
    assert {split.corpus for split in splits} == {"clotho"}
    for split in splits:
        on_disk = sorted(path.name for path in (published_clotho / split.name).iterdir())
        assert sorted(clip.clip_id for clip in split.clips) == [f"clotho/{split.name}/{name}" for name in on_disk]
        assert {len(clip.captions) for clip in split.clips} == {5}
        assert split.set_aside == ()
        assert split.num_listed == len(split.clips)


def test_captions_stand_as_published(published_clotho):
    with (published_clotho / "clotho_captions_validation.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert [list(clip.captions) for clip in clotho.read(published_clotho)[1].clips] == [row[1:] for row in rows]


def test_clips_with_odd_names_are_found_and_decoded(published_clotho):
    clips = [clip for split in clotho.read(published_clotho)[:3] for clip in split.clips]
    for quirk in ("&amp;", "Märkt"):
        clip = next(clip for clip in clips if quirk in clip.clip_id)
        samples = np.concatenate(list(clip.load()))
        assert samples.dtype == np.float32
        assert 14.9 < len(samples) / 32_000 < 30.1


def test_a_name_in_two_splits_is_two_clips(published_clotho):
    development, _, evaluation, *_ = clotho.read(published_clotho)
    names = [{clip.clip_id.rpartition("/")[2].lower() for clip in split.clips} for split in (development, evaluation)]
    assert {"same name in two splits.wav", "ambience birds.wav"} <= names[0] & names[1]
    ids = {clip.clip_id for split in (development, evaluation) for clip in split.clips}
    assert len(ids) == len(development.clips) + len(evaluation.clips)


def test_keywords_licence_and_source_come_from_the_metadata(published_clotho):
    clips = clotho.read(published_clotho)[0].clips
    assert all(2 <= len(clip.keywords) <= 6 for clip in clips)
    assert {clip.licence for clip in clips} == {"http://creativecommons.org/licenses/by/3.0/"}
    assert clips[0].source == ""  # "Not found"
    assert all(clip.source.removeprefix("freesound:").isdigit() for clip in clips[1:11])


def test_metadata_may_be_absent_or_lack_a_clip(tiny_clotho):
    (tiny_clotho / "clotho_metadata_validation.csv").unlink()
    path = tiny_clotho / "clotho_metadata_evaluation.csv"
    path.write_text("".join(path.read_text("iso-8859-1").splitlines(keepends=True)[:2]), "iso-8859-1")
    splits = clotho.read(tiny_clotho)
    described = [[(clip.keywords, clip.licence, clip.source) for clip in split.clips] for split in splits]
    first, second, nothing = (("dog", "märkt"), "CC0", "freesound:1234"), (("dog", "märkt"), "CC0", ""), ((), "", "")
    assert described == [[first, second], [nothing, nothing], [first, nothing]]


def test_a_missing_file_is_set_aside_and_named_with_its_line(tiny_clotho):
    (tiny_clotho / "validation" / "Same name.wav").unlink()
    split = clotho.read(tiny_clotho)[1]
    assert [clip.clip_id for clip in split.clips] == ["clotho/validation/validation dog.wav"]
    (gone,) = split.set_aside
    assert gone.origin == f"{tiny_clotho / 'clotho_captions_validation.csv'}, line 3"
    assert gone.reason == f"{tiny_clotho / 'validation' / 'Same name.wav'} is absent"


def test_a_disk_that_composes_letters_otherwise_has_the_file(tiny_clotho, write_audio):
    table = tiny_clotho / "clotho_captions_validation.csv"
    table.write_text(table.read_text("utf-8").replace("validation dog", "Märkt"), "utf-8")
    write_audio(tiny_clotho / "validation" / unicodedata.normalize("NFD", "Märkt.wav"))
    assert clotho.read(tiny_clotho)[1].clips[0].clip_id == "clotho/validation/Märkt.wav"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("caption_5", "caption_6", r"captions_validation.csv: column caption_5 is missing"),
        ("Caption 3.,", "", r"captions_validation.csv, line 2: the row doesn't have as many cells as the header"),
        ("Caption 3.", " ", r"captions_validation.csv, line 2: column 'caption_3' is empty"),
        ("Same name.wav", "validation dog.wav", r"line 3: file_name 'validation dog.wav' occurs twice .*line 2"),
        ("wav,", "mp3,", r"validation holds none of the 2 files named in clotho_captions_validation.csv"),
    ],
)
def test_wrong_tables_are_refused(old, new, said, tiny_clotho):
    path = tiny_clotho / "clotho_captions_validation.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=said):
        clotho.read(tiny_clotho)


def test_captions_in_another_encoding_are_refused(tiny_clotho):
    path = tiny_clotho / "clotho_captions_evaluation.csv"
    path.write_text(path.read_text().replace("evaluation dog", "Märkt"), "iso-8859-1")
    with pytest.raises(UserError, match=r"captions_evaluation.csv, line 2: byte 0xe4 isn't UTF-8"):
        clotho.read(tiny_clotho)


def test_metadata_without_a_column_is_refused(tiny_clotho):
    path = tiny_clotho / "clotho_metadata_development.csv"
    path.write_text(path.read_text("iso-8859-1").replace("sound_id", "id"), "iso-8859-1")
    with pytest.raises(UserError, match=r"metadata_development.csv: column sound_id is missing"):
        clotho.read(tiny_clotho)


@pytest.mark.parametrize("absent", ["clotho_captions_validation.csv", "validation"])
def test_an_incomplete_copy_is_refused(absent, tiny_clotho):
    (tiny_clotho / absent).rename(tiny_clotho / "elsewhere")
    with pytest.raises(UserError, match=f"{absent} is absent"):
        clotho.read(tiny_clotho)


def test_a_source_is_needed(tmp_path):
    with pytest.raises(UserError, match="--source"):
        clotho.read(None)
    with pytest.raises(UserError, match="nowhere is absent"):
        clotho.read(tmp_path / "nowhere")


def test_sources_are_those_of_the_metadata_also_without_a_file(tiny_clotho):
    (tiny_clotho / "evaluation" / "evaluation dog.wav").unlink()
    evaluation = clotho.read(tiny_clotho)[2]
    assert [clip.source for clip in evaluation.clips] == [""]
    assert evaluation.sources == {"freesound:1234"}
    assert evaluation.num_listed == 2


def test_names_that_differ_only_in_case_are_two_clips(tiny_clotho, write_audio):
    table = tiny_clotho / "clotho_captions_validation.csv"
    table.write_text(table.read_text().replace("validation dog", "same name"))
    write_audio(tiny_clotho / "validation" / "same name.wav", seed=1)
    clips = clotho.read(tiny_clotho)[1].clips
    assert [clip.clip_id for clip in clips] == ["clotho/validation/same name.wav", "clotho/validation/Same name.wav"]
    assert len({clip.load.args for clip in clips}) == 2


@pytest.fixture
def challenge(tiny_clotho, write_audio):
    """The tiny Clotho with a challenge of two clips and three captions, two of which are the same."""
    for name in ("Rain_a 'quoted' name.wav", "0001.wav"):
        write_audio(tiny_clotho / "retrieval_audio" / "test" / name)
    captions = [{"caption": caption} for caption in ("A dog.", "Rain.", "A dog.")]
    write_csv(tiny_clotho / "retrieval_captions.csv", captions, "utf-8")
    metadata = [
        {"file_name": "Rain: a 'quoted' name.wav", "sound_id": "77", "keywords": "rain;m\u00e4rkt"},
        {"file_name": "gone.wav", "sound_id": "78", "keywords": "gone"},
    ]
    write_csv(tiny_clotho / "retrieval_audio_metadata.csv", metadata, "iso-8859-1")
    return tiny_clotho


def test_the_challenge_has_the_clips_on_disk_and_captions_without_answers(challenge):
    split = clotho.read(challenge)[3]
    assert (split.name, split.num_listed, split.sources) == ("challenge", 3, {"freesound:77", "freesound:78"})
    assert [(clip.clip_id, clip.captions, clip.keywords, clip.source) for clip in split.clips] == [
        ("clotho/challenge/0001.wav", (), (), ""),
        ("clotho/challenge/Rain_a 'quoted' name.wav", (), ("rain", "m\u00e4rkt"), "freesound:77"),
    ]
    assert split.queries == (Query("A dog."), Query("Rain."), Query("A dog."))
    folder = challenge / "retrieval_audio" / "test"
    assert [(gone.origin, gone.reason) for gone in split.set_aside] == [
        (f"{challenge / 'retrieval_audio_metadata.csv'}, line 3", f"{folder / 'gone.wav'} is absent"),
        (str(folder), "1 files without a row in retrieval_audio_metadata.csv, such as '0001.wav': kept"),
    ]


@pytest.mark.parametrize(
    ("listed", "on_disk"),
    [
        ("Intersection Wet : Metro Pass.wav", "Intersection Wet_Metro Pass.wav"),
        ("./Rain.wav", "Rain.wav"),
        (".\\Rain.wav", "Rain.wav"),
        ("RAIN.WAV", "rain.wav"),
    ],
)
def test_a_file_of_the_challenge_that_is_written_in_another_way_is_one_clip(listed, on_disk, challenge, write_audio):
    write_audio(challenge / "retrieval_audio" / "test" / on_disk)
    path = challenge / "retrieval_audio_metadata.csv"
    path.write_text(path.read_text("iso-8859-1").replace("gone.wav", listed), "iso-8859-1")
    split = clotho.read(challenge)[3]
    assert {clip.clip_id: clip.source for clip in split.clips}[f"clotho/challenge/{on_disk}"] == "freesound:78"
    assert [aside.kind for aside in split.set_aside] == ["unusable"]
    assert split.num_listed == 3


def test_the_likely_file_is_named_for_an_absent_one(challenge, write_audio):
    write_audio(challenge / "retrieval_audio" / "test" / "gone (1).wav")
    assert clotho.read(challenge)[3].set_aside[0].reason.endswith("gone.wav is absent (is it 'gone (1).wav'?)")


def test_an_absent_file_does_not_take_the_file_of_another_row(tiny_clotho):
    table = tiny_clotho / "clotho_captions_validation.csv"
    table.write_text(table.read_text().replace("validation dog.wav", "SAME NAME.wav"))
    split = clotho.read(tiny_clotho)[1]
    assert [clip.clip_id for clip in split.clips] == ["clotho/validation/Same name.wav"]
    assert [aside.file for aside in split.set_aside] == ["SAME NAME.wav"]


def test_the_challenge_may_lie_in_test_and_lack_metadata(challenge):
    (challenge / "retrieval_audio" / "test").rename(challenge / "test")
    (challenge / "retrieval_audio_metadata.csv").unlink()
    split = clotho.read(challenge)[3]
    assert (len(split.clips), split.sources, split.num_listed) == (2, set(), 2)


def test_a_challenge_without_audio_is_refused(challenge):
    folder = challenge / "retrieval_audio" / "test"
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"test holds no \.wav file: extract retrieval_audio.7z again"):
        clotho.read(challenge)
    folder.rmdir()
    with pytest.raises(
        UserError, match=r"test is absent: extract retrieval_audio.7z into .*retrieval_audio, or remove"
    ):
        clotho.read(challenge)


def write_relevance(root, names, table="relevance_2025.csv"):
    write_csv(root / table, [{"query": "Caption 1.", "audio_filenames": names}], "utf-8")


def test_queries_of_2025_have_several_clips_of_evaluation(tiny_clotho):
    write_relevance(tiny_clotho, "['Same name.wav', \"evaluation dog.wav\", 'Same name.wav']")
    split = clotho.read(tiny_clotho)[-1]
    assert (split.name, split.clips_of, split.clips, split.num_listed) == ("evaluation_2025", "evaluation", (), 0)
    assert split.queries == (
        Query("Caption 1.", ("clotho/evaluation/Same name.wav", "clotho/evaluation/evaluation dog.wav")),
    )


def test_annotations_are_recognised_by_their_columns(tiny_clotho):
    names = "['evaluation dog.wav']"
    write_csv(tiny_clotho / "metadata_eval.csv", [{"file_name": "x.wav", "keywords": "rain"}], "utf-8")
    assert [split.name for split in clotho.read(tiny_clotho)] == ["development", "validation", "evaluation"]
    write_relevance(tiny_clotho, names, "metadata_eval.csv")
    assert clotho.read(tiny_clotho)[-1].queries == (Query("Caption 1.", ("clotho/evaluation/evaluation dog.wav",)),)
    write_relevance(tiny_clotho, names)
    assert len(clotho.read(tiny_clotho)) == 4
    write_relevance(tiny_clotho, "['Same name.wav']")
    with pytest.raises(UserError, match=r"relevance_2025.csv and .*metadata_eval.csv contain different annotations"):
        clotho.read(tiny_clotho)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("['validation dog.wav']", "'validation dog.wav' isn't a clip of clotho_captions_evaluation.csv"),
        ("[]", "audio_filenames must be a list"),
        ("[1]", "audio_filenames must be a list"),
        ("Same name.wav", "audio_filenames must be a list"),
        ("__import__('os').abort()", "audio_filenames must be a list"),
        ("[" * 300, "audio_filenames must be a list"),
        (" ", "column 'audio_filenames' is empty"),
    ],
)
def test_wrong_annotations_are_refused(names, said, tiny_clotho):
    write_relevance(tiny_clotho, names)
    with pytest.raises(UserError, match=f"relevance_2025.csv, line 2: {said}"):
        clotho.read(tiny_clotho)


def test_published_challenge_and_annotations_are_read(published_clotho):
    challenge, annotated = clotho.read(published_clotho)[3:]
    assert len(challenge.clips) == len(challenge.queries) == len(challenge.sources) == challenge.num_listed == 8
    assert "clotho/challenge/Rain, sea_a 'quoted' name.wav" in {clip.clip_id for clip in challenge.clips}
    assert all(clip.keywords and clip.source for clip in challenge.clips)
    evaluation = {clip.clip_id for clip in clotho.read(published_clotho)[2].clips}
    assert annotated.queries
    assert all(query.relevant_clip_ids and set(query.relevant_clip_ids) <= evaluation for query in annotated.queries)


@pytest.fixture
def served(challenge, tmp_path, monkeypatch):
    """The tiny Clotho as it is published: tables and archives on a server, with their checksums."""
    site = tmp_path / "site"
    site.mkdir()
    for split in SPLITS:
        with py7zr.SevenZipFile(site / f"clotho_audio_{split}.7z", "w") as archive:
            archive.writeall(challenge / split, split)
    with py7zr.SevenZipFile(site / "retrieval_audio.7z", "w") as archive:
        archive.writeall(challenge / "retrieval_audio" / "test", "test")
    for table in challenge.glob("*.csv"):
        shutil.copy(table, site)
    for name, md5s in (("CLOTHO_MD5", clotho.CLOTHO_MD5), ("CHALLENGE_MD5", clotho.CHALLENGE_MD5)):
        found = {file: hashlib.md5((site / file).read_bytes()).hexdigest() for file in md5s}
        monkeypatch.setattr(clotho, name, found)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=site))
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(clotho, "CLOTHO_URL", url)
    monkeypatch.setattr(clotho, "CHALLENGE_URL", url)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_what_is_downloaded_is_read_as_what_is_published(served, challenge, tmp_path):
    clotho.download(tmp_path / "target")
    splits, expected = clotho.read(tmp_path / "target"), clotho.read(challenge)
    assert [split.name for split in splits] == [*SPLITS, "challenge"]
    for split, other in zip(splits, expected, strict=True):
        assert [clip.clip_id for clip in split.clips] == [clip.clip_id for clip in other.clips]
        assert (split.queries, split.sources) == (other.queries, other.sources)
        for clip, twin in zip(split.clips, other.clips, strict=True):
            np.testing.assert_array_equal(np.concatenate(list(clip.load())), np.concatenate(list(twin.load())))
