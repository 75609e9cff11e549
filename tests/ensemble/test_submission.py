"""Entering a challenge: real files of a small evaluation set in the published layout, with what may be odd about it."""

import csv
import io
import json
import re
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import yaml

from data.corpora import clotho
from data.errors import UserError
from data.schema import SAMPLE_RATE_HZ, Query, Split
from data.splits import Splits
from data.store import files, shard_writer, split_writer, stored_split
from data.store.locks import lock_folder
from ensemble.challenge import formats
from ensemble.challenge import validation as inspection
from ensemble.challenge.metadata import choose_label, describe_rates, read_authors
from ensemble.challenge.systems import compute_system_scores, embed_member, read_cached_embeddings, read_system
from ensemble.pool.query_bank import normalise_with
from sweeps.spaces import from_scratch
from trainables.networks import dual_encoder
from trainables.records import checkpoint, ensemble_file
from trainables.records.embeddings import BANK_FILE, read_embeddings, write_embeddings
from trainables.records.mlflow_ledger import create_ledger, open_ledger
from trainables.records.run_storage import RunStorage

FILES = [
    "0001.wav", "0002.wav", "10.wav", "9.wav", "Märkt am Morgen.wav", "R&amp;B &#39;live&#39;.wav", 'Say "hello".wav',
    "Rain, sea_a 'quoted' name.wav", "blank .wav", "ñandú, 2.wav", "zoo.wav",
]  # fmt: skip
TORN, ABSENT = "Torn, &amp; cut.wav", "Zug_kommt.wav"
CAPTIONS = [
    "A dog barks, twice.", 'A man says "hello".', "A dog barks, twice.", "Two\nlines", "Un été à la plage.",
    "R&amp;B isn&#39;t loud", " a blank before", "a carriage\rreturn", "=1+1",
]  # fmt: skip
FIGURES = {"map10": 0.41421356, "r1": 0.28, "r5": 0.58, "r10": 0.71}
TEST = {
    "split": "clotho/evaluation",
    "fingerprint": "f" * 16,
    "systems": {"ensemble": {name: {"value": value, "interval": [0.2, 0.8]} for name, value in FIGURES.items()}},
}

AUTHORS = """
- {lastname: Doe-Müller, firstname: Jo, email: jo@example.org, corresponding: true,
   affiliation: {abbreviation: EX, institute: Example, department: Sound, location: "Town, Land"}}
- {lastname: Roe, firstname: Al, email: al@example.org,
   affiliation: {abbreviation: EX, institute: Example, department: Sound, location: "Town, Land"}}
"""


def write_challenge(root):
    """The challenge's evaluation set as it is published, with a file that is torn and one that is absent."""
    folder = root / "retrieval_audio" / "test"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [*FILES, TORN]:
        soundfile.write(folder / name, rng.normal(0, 0.1, SAMPLE_RATE_HZ), SAMPLE_RATE_HZ)
    (folder / TORN).write_bytes((folder / TORN).read_bytes()[:20_000])
    with (root / "retrieval_captions.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["caption"], *([caption] for caption in CAPTIONS)])
    with (root / "retrieval_audio_metadata.csv").open("w", encoding="iso-8859-1", newline="") as file:
        rows = [[name, "7", "sound"] for name in [*FILES, TORN, "Zug: kommt.wav"]]
        csv.writer(file).writerows([["file_name", "sound_id", "keywords"], *rows])
    return root


def write_split(store, split):
    """As data/prepare.py does, without Ray."""
    folder = store / split.corpus / split.name
    folder.mkdir(parents=True, exist_ok=True)
    parts = [split.clips[start : start + 4] for start in range(0, len(split.clips), 4)]
    written = [
        shard_writer.write_shard(
            folder / shard_writer.build_shard_name(number, part, "pcm16"), split.corpus, split.name, part, "pcm16"
        )
        for number, part in enumerate(parts)
    ]
    split_writer.write_split(folder, split, "pcm16", written)
    return stored_split.open_split(store, f"{split.corpus}/{split.name}")


def tiny(seed):
    """A trial of few weights."""
    base = from_scratch(EVERYWHERE, "float32", "cnn:small", rate=1e-3, epochs=2)
    masked = replace(base.audio.front_end, mask_mels=8)
    audio = replace(base.audio, channels=(8,), convolutions=(1,), stem_channels=8, segment_s=1.0, front_end=masked)
    return replace(
        base, audio=audio, text=replace(base.text, width=32, layers=1, heads=2), embedding_size=16, seed=seed
    )


class Everywhere:
    """The splits that the tiny trials name."""

    train, validation, test, pretrain = (
        "clotho/development",
        "clotho/validation",
        "clotho/evaluation",
        ("clotho/development",),
    )


EVERYWHERE = Everywhere()


@pytest.fixture(scope="module")
def entered(tmp_path_factory):
    """A store with the challenge, runs with three models that have embedded it, and ensembles of these."""
    root = tmp_path_factory.mktemp("entered")
    split = write_split(root / "store", clotho.read_challenge(write_challenge(root / "source")))
    runs, ledger, members = RunStorage.of(root / "runs"), create_ledger(root / "runs"), []
    torch.set_num_threads(1)
    for seed in range(3):
        trial, signature = tiny(seed), f"{seed:016x}"
        network = dual_encoder.build(trial, [caption.lower() for caption in CAPTIONS])
        folder = root / "runs" / "models" / signature
        checkpoint.save_model(folder, trial, network, checkpoint.copy_weights(network))
        run_id = ledger.claim(trial, signature, None)
        ledger.client.log_metric(run_id, "best_map10", 0.25 + seed / 100)
        ledger.finish(run_id)
        members.append({"name": trial.name, "count": seed + 1, "run_id": run_id, "signature": signature})
        found = embed_member(runs, signature, str(root / "store"), "clotho/challenge", 1)
        write_embeddings(root / "runs" / "embeddings" / f"{signature}-{split.fingerprint}.arrow", found)
    (root / "authors.yaml").write_text(AUTHORS, encoding="utf-8")
    for name, own, fusion in (
        ("first", members[:2], "mean"),
        ("second", members[1:], "zscore"),
        ("third", members, "rank"),
    ):
        write_ensemble(root / f"{name}.json", own, fusion=fusion)
    return root


def write_ensemble(path, members, **settings):
    """An ensemble.json, as far as a submission reads it."""
    whole = sum(member.get("count", 0) for member in members)
    weighted = [member | {"weight": member["count"] / whole} if "count" in member else member for member in members]
    ensemble = {"format_version": 3, "direction": "t2a", "fusion": "mean", "members": weighted}
    files.write_json(path, ensemble | {"test": TEST} | settings)
    return path


@pytest.fixture
def submit(entered, call_command):
    """A function that runs the command in this process: its exit status, and what it says."""

    def run(*words, authors=True):
        common = ["--evaluation", entered / "store"]
        own = [] if "--validate" in words else ["--runs", entered / "runs"]
        own += ["--authors", entered / "authors.yaml"] if authors and "--validate" not in words else []
        done = call_command("ensemble/submission.py", *common, *own, *words)
        assert done.returncode != 2 or "error: " in done.stderr.splitlines()[-1], "one line"
        return done.returncode, done.stderr.rstrip()

    return run


def ensembles(entered, *names):
    return ["--ensemble", *(entered / f"{name}.json" for name in names)]


def contents(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rows_of(data):
    return list(csv.reader(io.StringIO(data.decode("utf-8"), newline="")))


def test_what_is_evaluated_is_what_was_published(entered):
    evaluation = formats.read_evaluation_set(stored_split.open_split(entered / "store", "clotho/challenge"))
    assert evaluation.queries == CAPTIONS
    assert sorted(evaluation.decoded) == sorted(FILES)
    assert list(evaluation.undecodable) == [TORN, ABSENT]
    assert "truncated" in evaluation.undecodable[TORN]
    assert evaluation.undecodable[ABSENT].endswith("Zug: kommt.wav is absent")


def test_a_submission_of_2023_ranks_ten_files_for_each_caption(entered, submit, tmp_path):
    status, said = submit(*ensembles(entered, "first", "second"), "--out", tmp_path)
    assert status == 0, said
    assert re.search(rf"ranked last, by name: {re.escape(TORN)}: truncated", said)
    assert re.search(rf"ranked last, by name: {ABSENT}: .*is absent", said)
    found = contents(tmp_path / "DoeMüller_EX_task6b.zip")
    labels = ["DoeMüller_EX_task6b_1", "DoeMüller_EX_task6b_2"]
    system = "DoeMüller_EX_task6b_submission"
    assert list(found) == [
        f"task6/{label}/{system}_{number}_{end}"
        for number, label in enumerate(labels, 1)
        for end in ("output.csv", "metadata.yaml")
    ]
    for name, data in found.items():
        assert (tmp_path / name).read_bytes() == data
    header, *rows = rows_of(found[f"task6/{labels[0]}/{system}_1_output.csv"])
    assert header == ["caption", *(f"fname_{rank}" for rank in range(1, 11))]
    assert [row[0] for row in rows] == CAPTIONS
    assert rows[0] == rows[2]
    assert all(len(set(row[1:])) == 10 and set(row[1:]) <= set(FILES) for row in rows)
    read = pd.read_csv(io.BytesIO(found[f"task6/{labels[0]}/{system}_1_output.csv"]))
    assert read.to_numpy().tolist() == rows


def expected_scores(entered, name, fuse):
    """The ensemble's scores [Q, F] computed plainly, files by name; those that weren't decoded lie below all."""
    ensemble = json.loads((entered / f"{name}.json").read_text())
    fingerprint = stored_split.open_split(entered / "store", "clotho/challenge").fingerprint
    total = 0
    for member in ensemble["members"]:
        path = entered / "runs" / "embeddings" / f"{member['signature']}-{fingerprint}.arrow"
        found = read_embeddings(path)
        total = total + member["count"] * fuse(found.text_QD.astype(float) @ found.audio_AD.astype(float).T)
    names = [clip_id.removeprefix("clotho/challenge/") for clip_id in found.clip_ids]
    scores = pd.DataFrame(total / sum(member["count"] for member in ensemble["members"]), columns=names)
    return scores.reindex(columns=sorted([*FILES, TORN, ABSENT]), fill_value=-100)


def z(scores):
    return (scores - scores.mean(axis=1, keepdims=True)) / scores.std(axis=1, keepdims=True)


def rank(scores):
    return pd.DataFrame(scores).rank(axis=1).to_numpy()


@pytest.mark.parametrize(("name", "fuse"), [("first", lambda scores: scores), ("second", z), ("third", rank)])
def test_scores_are_fused_as_the_ensemble_was_chosen_by(name, fuse, entered, submit, tmp_path):
    assert submit(*ensembles(entered, name), "--out", tmp_path, "--format", "dcase2025")[0] == 0
    assert submit(*ensembles(entered, name), "--out", tmp_path, "--format", "dcase2023")[0] == 0
    data = contents(tmp_path / "DoeMüller_EX_task6.zip")["task6/DoeMüller_EX_task6_1/DoeMüller_EX_task6_1.output.csv"]
    matrix = pd.read_csv(io.BytesIO(data), index_col="index")
    assert list(matrix.index) == CAPTIONS
    assert list(matrix.columns) == sorted([*FILES, TORN, ABSENT])
    np.testing.assert_allclose(matrix[FILES], expected_scores(entered, name, fuse)[FILES], atol=1e-5)
    assert np.isfinite(matrix.to_numpy()).all()
    assert matrix[TORN].max() < matrix[FILES].min().min()
    assert (matrix[ABSENT] < matrix[TORN]).all()
    ranked = contents(tmp_path / "DoeMüller_EX_task6b.zip")[OUTPUT]
    order = np.argsort(-matrix.to_numpy(), axis=1, kind="stable")[:, :10]
    assert [row[1:] for row in rows_of(ranked)[1:]] == matrix.columns.to_numpy()[order].tolist()


def test_equal_scores_are_ranked_by_file_name():
    evaluation = formats.EvaluationSet("a/b", ["q"], [f"{letter}.wav" for letter in "lkjihgfedcba"], {})
    scores_QF = formats.extend_to_all_files(np.array([[0.0] * 10 + [1.0, 0.0]]), evaluation)
    _, (_, *names) = formats.iter_ranked_rows(scores_QF, evaluation)
    assert names == ["b.wav", "a.wav", *(f"{letter}.wav" for letter in "cdefghij")]


def test_too_few_files_for_a_row_are_refused():
    evaluation = formats.EvaluationSet("a/b", ["q"], ["a.wav"], {})
    formats.require_min_files("dcase2025", evaluation)
    with pytest.raises(UserError, match="a/b has 1 files, but dcase2023 needs at least 10"):
        formats.require_min_files("dcase2023", evaluation)


def test_the_description_is_filled_in(entered, submit, tmp_path):
    status, _ = submit(*ensembles(entered, "first"), "--out", tmp_path, "--name", "Two ears", "--abbreviation", "ears",
                       "--source-code", "https://example.org/code")  # fmt: skip
    assert status == 0
    (path,) = tmp_path.rglob("*_metadata.yaml")
    told = yaml.safe_load(path.read_text("utf-8"))
    assert told["submission"] | {"authors": None} == {
        "label": "DoeMüller_EX_task6b_1", "name": "Two ears", "abbreviation": "ears", "authors": None,
    }  # fmt: skip
    assert told["submission"]["authors"][0]["lastname"] == "Doe-Müller"
    description = told["system"]["description"]
    assert description["end_to_end"] is True
    assert description["training_data"] == "clotho/development"
    assert description["learning_rate"] == "0.001 (pretraining)"
    assert description["metric_monitored"] == "mAP@10 on clotho/validation"
    assert "SpecAugment" in description["data_augmentation"]
    assert description["ensemble"] == "weighted mean of scores"
    assert [member["validation_mAP@10"] for member in description["ensemble_members"]] == [0.25, 0.26]
    weights = [
        checkpoint.load_model(entered / "runs" / "models" / f"{seed:016x}").state_dict().values() for seed in (0, 1)
    ]
    assert told["system"]["complexity"]["total_parameters"] == sum(w.numel() for own in weights for w in own)
    assert told["system"]["source_code"] == "https://example.org/code"
    assert told["results"]["development_testing"] == {"mAP10": 0.4142, "R1": 0.28, "R5": 0.58, "R10": 0.71}


def test_what_only_authors_know_is_told_as_missing(entered, submit, tmp_path):
    members = json.loads((entered / "first.json").read_text())["members"]
    path = write_ensemble(tmp_path / "ensemble.json", members, test=None)
    status, said = submit("--ensemble", path, "--out", tmp_path, authors=False)
    assert status == 1
    assert "submission.label is a placeholder: give --label" in said
    assert "submission.authors is missing: give --authors" in said
    assert "results.development_testing.mAP10 is missing: select the ensemble without --no-test" in said
    status, said = submit("--ensemble", path, "--out", tmp_path, "--label", "Doe_EX", authors=False)
    assert (status, "placeholder" in said) == (1, False)


def test_figures_of_retrained_members_are_those_from_before(entered, submit, tmp_path):
    members = json.loads((entered / "first.json").read_text())["members"]
    before = {"members": members, "test": TEST}
    path = write_ensemble(tmp_path / "ensemble.json", members, test=None, before_retraining=before)
    assert submit("--ensemble", path, "--out", tmp_path)[0] == 0


def test_a_second_command_that_writes_to_the_same_folder_is_refused(entered, submit, tmp_path):
    words = (*ensembles(entered, "first"), "--out", tmp_path)
    assert submit(*words)[0] == 0
    (package,) = tmp_path.rglob("*.zip")
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with lock_folder(tmp_path):
        status, said = submit(*ensembles(entered, "second"), "--out", tmp_path)
    assert (status, said.splitlines()[-1]) == (
        2, f"error: another command is writing to {tmp_path}; wait until it has finished"
    )  # fmt: skip
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == written
    assert submit(*ensembles(entered, "second"), "--out", tmp_path)[0] == 0
    assert package.read_bytes() != written[package]


def test_the_same_submission_has_the_same_bytes(entered, submit, tmp_path):
    for folder in ("a", "b"):
        assert submit(*ensembles(entered, "first"), "--out", tmp_path / folder)[0] == 0
    name = "DoeMüller_EX_task6b.zip"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def edited(edit, path, where="output.csv"):
    """A zip with a file edited as text."""
    found = contents(path)
    name = next(name for name in found if name.endswith(where))
    found[name] = edit(found[name].decode("utf-8")).encode("utf-8")
    return found


def field(dotted, value):
    """Sets a field of a description."""

    def edit(text):
        told = yaml.safe_load(text)
        *parents, last = dotted.split(".")
        place = told
        for parent in parents:
            place = place[parent]
        place[last] = value
        return yaml.safe_dump(told, allow_unicode=True)

    return edit


def cell(row, column, change):
    """Changes a cell of a table."""

    def edit(text):
        rows = rows_of(text.encode("utf-8"))
        rows[row][column] = change(rows[row])
        out = io.StringIO(newline="")
        csv.writer(out).writerows(rows)
        return out.getvalue()

    return edit


def without_column(text):
    out = io.StringIO(newline="")
    csv.writer(out).writerows(row[:-1] for row in rows_of(text.encode("utf-8")))
    return out.getvalue()


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda text: "\ufeff" + text, "it begins with a byte order mark"),
        (lambda text: text.replace("fname_10", "fname_11"), "its header is 'caption,.*it must be 'caption,fname_1,"),
        (
            lambda text: text.replace(",fname_10", ""),
            "it isn't a table: CSV parse error: .*Expected 10 columns, got 11",
        ),
        (lambda text: text.rpartition("=1+1")[0], "it has 8 rows for 9 captions"),
        (lambda text: text.rpartition("=1+1")[0], "caption '=1.1' occurs 0 times: it must occur 1 times"),
        (cell(3, 0, lambda row: "Another."), "'A dog barks, twice.' occurs 1 times: it must occur 2 times"),
        (cell(3, 0, lambda row: "Another."), "caption 'Another.' occurs 1 times: it must occur 0 times"),
        (cell(1, 4, lambda row: "Zug: kommt.wav"), "row 1: 'Zug: kommt.wav' isn't a file of clotho/challenge"),
        (cell(9, 4, lambda row: row[1].upper()), r"row 9: '.*WAV' isn't a file of clotho/challenge"),
        (cell(2, 4, lambda row: row[1]), "row 2: '.*' is ranked more than once"),
        (lambda text: "", "it isn't a table: Empty CSV file"),
    ],
)
def test_a_broken_ranking_is_found(edit, said, entered, submit, tmp_path):
    assert_found(submit, entered, tmp_path, "dcase2023", lambda path: edited(edit, path), said)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (cell(0, 0, lambda row: "query"), "its first column is 'query': it must be 'index'"),
        (cell(0, 2, lambda row: row[1]), "column '0001.wav' occurs more than once"),
        (cell(0, 2, lambda row: row[1]), "file '0002.wav' has no column"),
        (cell(0, 2, lambda row: "other.wav"), "column 'other.wav' isn't a file of clotho/challenge"),
        (cell(3, 2, lambda row: "nan"), "row 3, column '0002.wav': nan isn't a finite score"),
        (cell(3, 2, lambda row: "-inf"), "row 3, column '0002.wav': -inf isn't a finite score"),
        (cell(3, 2, lambda row: "much"), "it isn't a table of scores: .*conversion error to double.*'much'"),
        (cell(3, 2, lambda row: ""), "it isn't a table of scores: .*conversion error to double"),
        (without_column, "file 'ñandú, 2.wav' has no column"),
        (lambda text: text.rpartition("=1+1")[0], "it has 8 rows for 9 captions"),
    ],
)
def test_a_broken_matrix_is_found(edit, said, entered, submit, tmp_path):
    assert_found(submit, entered, tmp_path, "dcase2025", lambda path: edited(edit, path), said)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda text: "a: [", "metadata.yaml: it isn't YAML"),
        (lambda text: "[1, 2]", "system.description.optimizer is missing"),
        (field("submission.label", "Doe_EX_task6b_2"), "submission.label is 'Doe_EX_task6b_2': its file is named"),
        (field("submission.abbreviation", "much too long"), "abbreviation is 'much too long': at most 10 characters"),
        (field("submission.authors", [{"lastname": "Doe"}]), "authors, number 1: affiliation.institute is missing"),
        (field("submission.authors", [{"lastname": "Doe"}]), "exactly one must have corresponding: true"),
        (field("system.description.optimizer", None), "system.description.optimizer is missing"),
        (
            field("system.complexity.total_parameters", "many"),
            "total_parameters is 'many': it must be a positive integer",
        ),
        (field("results.development_testing.mAP10", 41.4), "mAP10 is 41.4: it must be between 0 and 1"),
        (field("results.development_testing", None), "development_testing.R5 is missing"),
    ],
)
def test_a_broken_description_is_found(edit, said, entered, submit, tmp_path):
    assert_found(submit, entered, tmp_path, "dcase2023", lambda path: edited(edit, path, "_metadata.yaml"), said)


LABEL = "DoeMüller_EX_task6b_1"
OUTPUT = f"task6/{LABEL}/DoeMüller_EX_task6b_submission_1_output.csv"
META = f"task6/{LABEL}/DoeMüller_EX_task6b_submission_1_metadata.yaml"


def renamed(old, new):
    return lambda path: {name.replace(old, new): data for name, data in contents(path).items()}


def latin(path):
    found = contents(path)
    return found | {OUTPUT: found[OUTPUT].decode("utf-8").encode("iso-8859-1")}


def five(path):
    found = contents(path)
    for number in range(2, 6):
        found |= {name.replace("_1", f"_{number}"): data for name, data in contents(path).items()}
    return found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (latin, "line 2: byte 0xf1 isn't UTF-8"),
        (five, "it contains 5 systems: submit one to four"),
        (five, "DoeMüller_EX_task6b_5 isn't a label"),
        (renamed("task6b", "task6"), "DoeMüller_EX_task6_1 isn't a label: use LASTNAME_INSTITUTE_task6b_NUMBER"),
        (renamed("_metadata.yaml", ".yaml"), "DoeMüller_EX_task6b_submission_1_metadata.yaml is missing"),
        (renamed("_metadata.yaml", ".yaml"), "submission_1.yaml belongs to no system"),
        (renamed("_output.csv", ".csv"), "DoeMüller_EX_task6b_submission_1_output.csv is missing"),
        (renamed("_submission_1_output.csv", "_1.output.csv"), "task6b_1.output.csv belongs to no system"),
        (renamed(f"task6/{LABEL}/", "../"), "points outside the zip"),
        (lambda path: {}, "it contains 0 systems"),
    ],
)
def test_a_broken_package_is_found(change, said, entered, submit, tmp_path):
    assert_found(submit, entered, tmp_path, "dcase2023", change, said)


def assert_found(submit, entered, tmp_path, format_name, change, said):
    """Write a submission, change its zip, and look through that."""
    assert submit(*ensembles(entered, "first"), "--out", tmp_path, "--format", format_name)[0] == 0
    (path,) = tmp_path.glob("*.zip")
    assert submit("--validate", path)[0] == 0
    found = change(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in found.items():
            archive.writestr(name, data)
    status, told = submit("--validate", path, "--format", format_name)
    assert status == 1
    assert re.search(said, told), told
    assert "can't be submitted" in told


def test_a_file_that_is_in_the_zip_twice_is_found(entered, submit, tmp_path):
    assert submit(*ensembles(entered, "first"), "--out", tmp_path)[0] == 0
    (path,) = tmp_path.glob("*.zip")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(META, "other")
    status, said = submit("--validate", path)
    assert status == 1
    assert f"{META} is in the zip twice" in said


def test_a_torn_zip_is_found(entered, submit, tmp_path):
    assert submit(*ensembles(entered, "first"), "--out", tmp_path)[0] == 0
    (path,) = tmp_path.glob("*.zip")
    data = path.read_bytes()
    path.write_bytes(data[:200] + b"\0" * 20 + data[220:])
    status, said = submit("--validate", path)
    assert status == 1
    assert "its contents can't be read" in said
    path.write_bytes(data[:-100])
    status, said = submit("--validate", path)
    assert (status, "isn't a zip file" in said) == (2, True)
    place = data.index(META.encode()) + len(META.encode())
    path.write_bytes(data[:place] + b"\xff" * 20 + data[place + 20 :])  # no compressed block begins like that
    status, said = submit("--validate", path)
    assert status == 1
    assert re.search("its contents can't be read: .*invalid block type", said)
    assert submit("--validate", tmp_path / "absent.zip")[1].endswith(
        "absent.zip can't be read: No such file or directory"
    )


def test_a_report_beside_the_systems_is_named_and_asked_for_only_if_it_is_absent(entered, submit, tmp_path):
    assert submit(*ensembles(entered, "first"), "--out", tmp_path)[0] == 0
    (path,) = tmp_path.glob("*.zip")
    assert submit("--validate", path)[1].endswith("no problems; add the technical report (PDF)")
    report = "task6/DoeMüller_EX_task6b_1.technical_report.pdf"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(report, "%PDF")
    status, said = submit("--validate", path)
    assert status == 0
    assert said.endswith(f"no problems; with the technical report {report}")


def test_names_are_compared_with_the_files_of_the_challenge_in_both_directions(entered, submit, tmp_path):
    assert submit(*ensembles(entered, "first"), "--out", tmp_path)[0] == 0
    (path,) = tmp_path.glob("*.zip")
    audio = tmp_path / "test"
    audio.mkdir()
    for name in [*FILES, TORN, ABSENT]:
        (audio / name).touch()
    assert submit("--validate", path, "--audio", audio)[0] == 0
    (audio / ABSENT).rename(audio / "Zug _kommt.wav")
    status, said = submit("--validate", path, "--audio", audio)
    assert status == 1
    assert f"'{ABSENT}' isn't a file of the challenge" in said
    assert "'Zug _kommt.wav', a file of the challenge, isn't in the evaluation set" in said


def test_lines_end_with_a_line_feed_and_assumed_fields_are_listed(entered, submit, tmp_path):
    assert submit(*ensembles(entered, "first"), "--out", tmp_path)[0] == 0
    (path,) = tmp_path.glob("*.zip")
    found = contents(path)
    assert b"\r\n" not in found[OUTPUT]
    text = found[META].decode()
    assert text.startswith("# The names of these fields are assumed; compare them with the form of the year's task:\n")
    assumed = re.findall(r"^#   (\S+)$", text, re.MULTILINE)
    for field_name in assumed:
        parent = inspection.value_at(yaml.safe_load(text), field_name.rpartition(".")[0])
        assert parent is not None


def altered(entered, tmp_path, **settings):
    members = json.loads((entered / "first.json").read_text())["members"]
    return write_ensemble(tmp_path / "ensemble.json", settings.pop("members", members), **settings)


GONE = {"name": "gone", "weight": 1.0, "run_id": "0", "signature": "f" * 16}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"direction": "a2t"}, r"ensemble.json was selected for --direction a2t: .*select one with --direction t2a"),
        ({"fusion": "median"}, "ensemble.json: fusion: .*'mean', 'zscore', 'rank', .*, not 'median'"),
        ({"format_version": 9}, "format_version is 9, and this version of Chorale reads formats up to 3"),
        (
            {"members": [{"name": "a", "weight": 1, "folder": "pool"}]},
            "member 'a' is a file of scores: it has no model",
        ),
        ({"members": [GONE]}, r"member 'gone' \(f{16}\) isn't a finished trial in sqlite"),
        ({"members": []}, "members: there are none"),
    ],
)
def test_ensembles_that_cant_be_submitted(settings, said, entered, submit, tmp_path):
    status, told = submit("--ensemble", altered(entered, tmp_path, **settings), "--out", tmp_path)
    assert status == 2
    assert re.search(said, told), told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ensemble", *(f"{n}.json" for n in range(5)), "--out", "o"], "5 systems: at most 4 .*leave out 4.json"),
        (["--ensemble", "absent.json", "--out", "o"], "absent.json can't be read: No such file"),
        (["--ensemble", "first.json", "--out", "first.json"], "first.json.* can't be written: Not a directory"),
        (["--ensemble", "first.json", "--out", "o", "--label", "Doe"], "--label 'Doe': give LASTNAME_INSTITUTE"),
        (["--ensemble", "a.json"], "the following arguments are required: --out"),
        ([], "the following arguments are required: --ensemble, --out"),
        (["--ensemble", "a.json", "--validate", "a.zip"], "submission.py validate: error: unrec.*: --ensemble a.json"),
        (["--validate", "a.zip", "--label", "A_B"], "validate: error: unrecognized arguments: --label A_B"),
        (["--ensemble", "a.json", "--out", "o", "--name", "a", "b"], "--name: give one for each system, 1, not 2"),
        (["--ensemble", "a.json", "--out", "o", "--split", "clotho/x"], "holds no split 'clotho/x' .*clotho/challenge"),
        (["--ensemble", "a.json", "--out", "o", "--evaluation", "nowhere"],
         "nowhere holds no split 'clotho/challenge' .*prepare it with: python data/prepare.py clotho --store"),
    ],
)  # fmt: skip
def test_a_users_mistake_is_one_line(words, said, entered, submit, monkeypatch):
    monkeypatch.chdir(entered)
    status, told = submit(*words, authors=False)
    assert status == 2
    assert re.search(said, told), told


@pytest.mark.parametrize("label", ["Doe", "Doe_EX_task6b", "Doe EX", "Doe_", "a/b_c"])
def test_a_wrong_label_is_refused(label):
    with pytest.raises(UserError, match="give LASTNAME_INSTITUTE, one word each"):
        choose_label(label, [])


@pytest.mark.parametrize("text", ["a: [", "just words", "[]", "[1]", "authors: {}"])
def test_a_file_that_names_no_authors_is_refused(text, tmp_path):
    (tmp_path / "authors.yaml").write_text(text)
    with pytest.raises(UserError, match=r"authors\.yaml"):
        read_authors(tmp_path / "authors.yaml")


def test_a_label_comes_from_the_corresponding_author(tmp_path):
    (tmp_path / "authors.yaml").write_text(f"authors: {AUTHORS}", encoding="utf-8")
    assert choose_label(None, read_authors(tmp_path / "authors.yaml")) == "DoeMüller_EX"
    assert choose_label(None, [{"lastname": "Doe"}]) == "LASTNAME_INSTITUTE"


def test_splits_without_queries_or_clips_are_named(entered, tmp_path):
    split = clotho.read_challenge(entered / "source")
    write_split(tmp_path, Split("clotho", "mute", split.clips, queries=()))
    write_split(tmp_path, Split("clotho", "empty", (), queries=(Query("A dog."),)))
    for name, said in (("mute", "has no queries"), ("empty", "has no clips")):
        with pytest.raises(UserError, match=f"clotho/{name} {said}"):
            formats.read_evaluation_set(stored_split.open_split(tmp_path, f"clotho/{name}"))


def test_a_split_that_a_member_was_trained_on_is_refused(entered, submit, tmp_path):
    split = clotho.read_challenge(entered / "source")
    write_split(tmp_path, Split("clotho", "development", split.clips, queries=(Query("A dog."),)))
    words = [*ensembles(entered, "first"), "--out", tmp_path, "--evaluation", tmp_path]
    status, said = submit(*words, "--split", "clotho/development")
    assert status == 2
    assert "was trained on clotho/development: no member may have been trained on the evaluation set" in said


@pytest.mark.parametrize(
    ("break_model", "said"),
    [
        (shutil.rmtree, "member .* has no model: .*models/0{16} no longer exists; restore it"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights: .*lacks model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"torn"), "its weights can't be read"),
        (lambda folder: (folder / "trial.json").write_text('{"audio": {"family": "ears"}}'), "was trained by another"),
    ],
)
def test_members_whose_checkpoints_are_gone_are_named(break_model, said, entered, submit, tmp_path):
    runs = shutil.copytree(entered / "runs", tmp_path / "runs")
    break_model(runs / "models" / f"{0:016x}")
    status, told = submit(*ensembles(entered, "first"), "--out", tmp_path, "--runs", runs)
    assert status == 2
    assert re.search(said, told), told


def test_weights_that_dont_fit_are_named_where_they_are_loaded(entered, tmp_path):
    shutil.copytree(entered / "runs" / "models", tmp_path / "models")
    folder = tmp_path / "models" / f"{0:016x}"
    trial = json.loads((folder / "trial.json").read_text())
    files.write_json(folder / "trial.json", trial | {"embedding_size": 8})
    with pytest.raises(UserError, match=r"can't be loaded: .*size mismatch.*train it again"):
        embed_member(RunStorage.of(tmp_path), f"{0:016x}", str(entered / "store"), "clotho/challenge", 1)


def test_embeddings_in_another_order_are_made_anew(entered, tmp_path):
    split = stored_split.open_split(entered / "store", "clotho/challenge")
    path = entered / "runs" / "embeddings" / f"{0:016x}-{split.fingerprint}.arrow"
    other = tmp_path / path.name
    found = read_embeddings(path)
    write_embeddings(other, replace(found, queries=found.queries[::-1]))
    assert read_cached_embeddings(other, split) is None
    assert read_cached_embeddings(path, split).queries == CAPTIONS


def test_a_single_member_scores_as_it_does_alone(entered, tmp_path):
    members = json.loads((entered / "first.json").read_text())["members"]
    path = write_ensemble(tmp_path / "ensemble.json", [members[0], members[1] | {"count": 0}])
    runs = RunStorage.of(entered / "runs")
    system = read_system(path, open_ledger(runs), runs)
    split = stored_split.open_split(entered / "store", "clotho/challenge")
    found = read_embeddings(entered / "runs" / "embeddings" / f"{0:016x}-{split.fingerprint}.arrow")
    np.testing.assert_allclose(
        compute_system_scores(system, {f"{0:016x}": found}, split), found.compute_scores(), atol=1e-6
    )


@pytest.mark.parametrize("fusion", ["inverted-softmax", "dynamic-inverted-softmax"])
def test_a_system_with_query_banks_has_the_scores_of_its_normalised_members(entered, tmp_path, fusion):
    """Its banks are those that are stored with the models; without one, the member is named."""
    shutil.copytree(entered / "runs", tmp_path / "runs")
    runs = RunStorage.of(tmp_path / "runs")
    members = json.loads((entered / "first.json").read_text())["members"]
    path = write_ensemble(tmp_path / "ensemble.json", members, fusion=fusion, normalisation={"temperature": 0.1})
    with pytest.raises(UserError, match=r"member .*bank.arrow doesn't exist.*embed.py bank"):
        read_system(path, open_ledger(runs), runs)
    split = stored_split.open_split(entered / "store", "clotho/challenge")
    rng, found, expected, total = np.random.default_rng(0), {}, 0.0, sum(member["count"] for member in members)
    for member in members:
        signature = member["signature"]
        found[signature] = read_embeddings(entered / "runs" / "embeddings" / f"{signature}-{split.fingerprint}.arrow")
        text_QD = rng.normal(size=(5, 16)).astype(np.float32)
        text_QD /= np.linalg.norm(text_QD, axis=1, keepdims=True)
        bank = replace(found[signature], clip_ids=[], queries=list("abcde"), relevant_clip_ids=[[]] * 5,
                       audio_AD=text_QD[:0], text_QD=text_QD)  # fmt: skip
        write_embeddings(runs.folder / "models" / signature / BANK_FILE, bank)
        normalised = normalise_with(found[signature], bank, fusion, 0.1)
        expected += member["count"] / total * normalised.compute_scores()
    system = read_system(path, open_ledger(runs), runs)
    np.testing.assert_allclose(compute_system_scores(system, found, split), expected, atol=1e-6)


def test_what_is_looked_for_is_spelled_out_twice():
    assert {name: challenge.task for name, challenge in formats.CHALLENGES.items()} == inspection.TASKS
    for name, challenge in formats.CHALLENGES.items():
        written = challenge.output_name("Doe_EX", 3), challenge.meta_name("Doe_EX", 3)
        looked_for = inspection.FILE_NAMES[name].values()
        folder = f"Doe_EX_{challenge.task}"
        assert list(written) == [f"task6/{folder}_3/{one.format(system=folder, number=3)}" for one in looked_for]


def test_names_of_2025_are_those_of_its_labels(entered, submit, tmp_path):
    assert submit(*ensembles(entered, "first"), "--out", tmp_path, "--format", "dcase2025")[0] == 0
    label = "DoeMüller_EX_task6_1"
    assert list(contents(tmp_path / "DoeMüller_EX_task6.zip")) == [
        f"task6/{label}/{label}.{end}" for end in ("output.csv", "meta.yaml")
    ]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, call_command, cluster):
    """Clotho in the published layout with the challenge's set, as the command prepares it."""
    root = write_challenge(tmp_path_factory.mktemp("published"))
    for split in ("development", "validation", "evaluation"):
        (root / split).mkdir()
        soundfile.write(root / split / "a.wav", np.random.default_rng(1).normal(0, 0.1, 8000), 8000)
        with (root / f"clotho_captions_{split}.csv").open("w", encoding="utf-8", newline="") as file:
            header = ["file_name", *(f"caption_{number}" for number in range(1, 6))]
            csv.writer(file).writerows([header, ["a.wav", *("A dog barks." for _ in range(5))]])
    store = tmp_path_factory.mktemp("prepared")
    done = call_command("data/prepare.py", "clotho", "--source", root, "--store", store)
    assert done.returncode == 0, done.stderr
    return store


@pytest.mark.cluster
def test_a_finished_sweep_enters_a_challenge(own_runs, prepared, cluster, entered, run_command, call_command, tmp_path):
    """The first submission is made in a process of its own, as a user makes it."""
    runs = own_runs
    chosen = call_command("ensemble/select.py", "--runs", runs, "--sweep", "first", "--method", "all", "--folds", 0,
                          "--out", tmp_path)  # fmt: skip
    assert chosen.returncode == 0, chosen.stderr
    whole = ensemble_file.read_ensemble(tmp_path / "ensemble.json")
    ensemble_file.write_ensemble(tmp_path / "single.json", replace(whole, members=whole.members[1:2]))
    words = (
        "ensemble/submission.py", "--ensemble", tmp_path / "ensemble.json", tmp_path / "single.json", "--evaluation",
        prepared, "--runs", runs, "--out", tmp_path / "out", "--authors", entered / "authors.yaml",
    )  # fmt: skip
    number = len(whole.members)
    done = run_command(*words, RAY_ADDRESS=cluster)
    assert done.returncode == 0, done.stderr
    assert f"{number} members, 0 of them with cached embeddings of clotho/challenge" in done.stderr
    assert re.search(rf"ranked last, by name: {re.escape(TORN)}: truncated", done.stderr)
    (path,) = (tmp_path / "out").glob("*.zip")
    found = contents(path)
    assert len(found) == 4
    for number_of_system in (1, 2):
        folder = f"DoeMüller_EX_task6b_{number_of_system}"
        named = f"task6/{folder}/DoeMüller_EX_task6b_submission_{number_of_system}"
        rows = rows_of(found[f"{named}_output.csv"])[1:]
        assert [row[0] for row in rows] == CAPTIONS
        assert all(len(set(row[1:])) == 10 and set(row[1:]) <= set(FILES) for row in rows)
        figures = yaml.safe_load(found[f"{named}_metadata.yaml"])["results"]["development_testing"]
        assert figures["mAP10"] == round(whole.test.systems["ensemble"]["map10"].value, 4)
    next((runs / "embeddings").iterdir()).unlink()
    matrix = call_command(*words, "--format", "dcase2025")
    assert matrix.returncode == 0, matrix.stderr
    assert f"{number} members, {number - 1} of them with cached embeddings" in matrix.stderr
    assert f"{len(CAPTIONS)} captions, {len(FILES) + 2} files, no problems" in matrix.stderr


def test_rates_by_part_are_described_with_the_peak_rate():
    trial = from_scratch(Splits("c/train", "c/v", "c/t", ("c/train",)), "float32", "cnn:small", rate=1e-3, epochs=2)
    assert describe_rates(trial) == "0.001 (pretraining)"
    shared = replace(trial, audio_rate_share=0.1, layer_decay=0.5)
    assert describe_rates(shared) == "0.001 (pretraining; audio rate share 0.1; layer decay 0.5)"
