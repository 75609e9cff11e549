"""An ensemble's models on their own: exported, searched with, and served by MLflow."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data.batches import load_files
from data.errors import UserError
from data.shards import open_split
from data.splits import Splits
from ensemble import exported, recordings
from trainables import checkpoint, model
from trainables import trial as trials
from trainables.embed import embed, embed_audio, embed_files, read_embeddings
from trainables.ledger import open_ledger
from trainables.runs import Runs

CAPTIONS = ["a low tone beats once", "a high tone beats twice", "a middle tone, again and again"]
SENTENCE = "a dog barks while it rains"


@pytest.fixture(scope="module")
def runs(tone_store, space_file, tmp_path_factory):
    """A folder of runs with two models, random as they are, and the trials."""
    folder = tmp_path_factory.mktemp("runs")
    splits = Splits("folder/train", "folder/validation", "folder/test", ("folder/train",))
    found = runpy.run_path(str(space_file))["tiny"](splits, "float32")
    for trial in found:
        network = model.build(trial, CAPTIONS)
        place = folder / "models" / trials.signature(trial, tone_store)
        checkpoint.save_model(place, trial, network.text, checkpoint.weights_of(network))
    return folder


@pytest.fixture(scope="module")
def ensemble(runs):
    """An ensemble of the two, as select.py writes it."""
    signatures = sorted(path.name for path in (runs / "models").iterdir())
    members = [
        {"name": f"member {place}", "weight": weight, "signature": signature}
        for place, (signature, weight) in enumerate(zip(signatures, (0.75, 0.25), strict=True))
    ]
    path = runs / "ensemble.json"
    path.write_text(json.dumps({"members": members, "fusion_name": "mean", "fusion": "weighted mean of scores"}))
    return path


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Recordings of other rates, lengths, channels and names, one of them torn, and what isn't audio."""
    folder = tmp_path_factory.mktemp("sounds")
    (folder / "below").mkdir()
    rng = np.random.default_rng(0)
    for name, rate_hz, seconds, channels in (
        ("dög, barking.wav", 44_100, 3.2, 1),
        ("below/rain.flac", 32_000, 1.0, 2),
        ("below/[wind].ogg", 48_000, 40.0, 1),
    ):
        soundfile.write(folder / name, rng.normal(0, 0.1, (int(rate_hz * seconds), channels)), rate_hz)
    whole = (folder / "dög, barking.wav").read_bytes()
    (folder / "torn.wav").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("no sound")
    return folder


def test_files_are_embedded_as_a_store_keeps_them(tones, tone_store, runs):
    """As decoded, resampled, rounded and cut by data/prepare.py: the same vectors to the last bit."""
    folder = next((runs / "models").iterdir())
    network, trial = checkpoint.load_model(folder), checkpoint.load_trial(folder)
    split = open_split(tone_store, "folder/test")
    stored = embed(network, trial, "", split)
    paths = [Path(tones) / clip_id.removeprefix("folder/test/") for clip_id in split.clip_ids]
    vectors_AD, embedded, refused = embed_files(network, trial, paths)
    assert embedded == paths
    assert not refused
    np.testing.assert_array_equal(vectors_AD, stored.audio_AD)


def test_no_more_than_the_beginning_of_a_file_counts(sounds, runs):
    folder = next((runs / "models").iterdir())
    network, trial = checkpoint.load_model(folder), checkpoint.load_trial(folder)
    path = sounds / "below" / "[wind].ogg"
    batches = list(load_files([path], trial.audio.segment_s, 2.0, 4, lambda path, why: None))
    assert batches[0].segments_per_clip.tolist() == [2]
    assert embed_audio(network, trial, batches)[0].shape == (1, trial.embedding_size)


def test_the_command_embeds_sounds_and_sentences_of_ones_own(sounds, runs, run_command, tmp_path):
    folder = sorted((runs / "models").iterdir())[0]
    sentences = tmp_path / "sentences.csv"
    sentences.write_text('caption,more\n"a dog, barking",x\nrain falls,y\n', encoding="utf-8")
    words = ("trainables/embed.py", "--audio", sounds, "--captions", sentences, "--out", tmp_path / "out.arrow")
    done = run_command(*words, "--checkpoint", folder)
    assert done.returncode == 0, done.stderr
    assert "left out" in done.stderr
    assert "torn.wav: torn" in done.stderr
    found = read_embeddings(tmp_path / "out.arrow")
    assert found.clip_ids == ["below/[wind].ogg", "below/rain.flac", "dög, barking.wav"]
    assert found.queries == ["a dog, barking", "rain falls"]
    np.testing.assert_allclose(np.linalg.norm(found.audio_AD, axis=1), 1, atol=1e-5)
    assert run_command(*words, "--checkpoint", folder.name, "--runs", runs).returncode == 0


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--checkpoint", "{runs}", "--audio", "{sounds}"], "holds no trained model"),
        (["--checkpoint", "0123456789abcdef", "--audio", "{sounds}"], "holds no runs"),
        (["--checkpoint", "{model}", "--audio", "{runs}/absent"], "isn't a folder"),
        (["--checkpoint", "{model}", "--audio", "{runs}/models"], "holds no audio file"),
        (["--checkpoint", "{model}", "--captions", "{empty}"], "holds no sentence"),
        (["--checkpoint", "{model}", "--captions", "{marks}"], "marks.txt, line 2: no word is left of '?!'"),
        (["--checkpoint", "{model}", "--captions", "{table}"], "caption"),
        (["--checkpoint", "{model}"], "nothing to embed"),
    ],
)
def test_what_can_not_be_embedded_is_named(words, why, runs, sounds, tmp_path, run_command):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "marks.txt").write_text("rain\n?!\n")
    (tmp_path / "table.csv").write_text("text\nrain\n")
    places = {name: tmp_path / f"{name}.{'csv' if name == 'table' else 'txt'}" for name in ("empty", "marks", "table")}
    given = [word.format(runs=runs, sounds=sounds, model=next((runs / "models").iterdir()), **places) for word in words]
    failed = run_command("trainables/embed.py", *given, "--out", tmp_path / "out.arrow", "--runs", runs)
    assert failed.returncode == 2
    assert why in failed.stderr
    assert not (tmp_path / "out.arrow").exists()


def test_dot_products_are_the_weighted_means_of_the_members(ensemble, runs, sounds):
    models = exported.load(ensemble, Runs.of(runs))
    paths = [sounds / "below" / "rain.flac", sounds / "dög, barking.wav"]
    audio_AD, _, _ = models.embed_files(paths)
    scores = models.embed_text([SENTENCE]) @ audio_AD.T
    expected = sum(
        own.weight
        * (exported.embed_text(own.model, own.trial, [SENTENCE]) @ embed_files(own.model, own.trial, paths)[0].T)
        for own in models.members
    )
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_an_index_grows_shrinks_and_answers(ensemble, runs, sounds, run_command, tmp_path):
    index = tmp_path / "index"
    words = ("ensemble/search.py", "--ensemble", ensemble, "--runs", runs, "--index", index)
    made = run_command(*words, "--add", sounds)
    assert made.returncode == 0, made.stderr
    assert "3 files embedded, 0 were there, 0 are gone" in made.stderr
    assert "left out" in made.stderr
    answered = run_command(*words, "--top", 2, SENTENCE)
    lines = answered.stdout.splitlines()
    assert len(lines) == 2
    score, path = lines[0].split("  ")
    assert Path(path).exists()
    models = exported.load(ensemble, Runs.of(runs))
    vectors, paths, _ = models.embed_files(
        sorted(path for path in sounds.rglob("*") if path.suffix in (".wav", ".flac", ".ogg"))
    )
    scores = (models.embed_text([SENTENCE]) @ vectors.T)[0]
    assert path == str(paths[int(scores.argmax())])
    assert float(score) == pytest.approx(float(scores.max()), abs=1e-4)
    more = tmp_path / "more"
    more.mkdir()
    for name in ("a.wav", "b.wav"):
        soundfile.write(more / name, np.random.default_rng(1).normal(0, 0.1, 64_000), 32_000)
    recordings.add(index, more, models)
    (more / "a.wav").unlink()
    soundfile.write(more / "b.wav", np.random.default_rng(2).normal(0, 0.1, 96_000), 32_000)
    before = recordings.open_index(index, models)
    recordings.add(index, more, models)
    after = recordings.open_index(index, models)
    assert [path for path in before.paths if path not in after.paths] == [str(more / "a.wav")]
    place = {path: number for number, path in enumerate(before.paths)}
    for number, path in enumerate(after.paths):
        same = (after.vectors_AD[number] == before.vectors_AD[place[path]]).all()
        assert same == (path != str(more / "b.wav"))


def test_what_can_not_be_searched_is_named(ensemble, runs, sounds, tmp_path):
    models = exported.load(ensemble, Runs.of(runs))
    with pytest.raises(UserError, match="make it with --add"):
        recordings.open_index(tmp_path, models)
    recordings.add(tmp_path, sounds, models)
    with pytest.raises(UserError, match="no word is left"):
        recordings.search(models, recordings.open_index(tmp_path, models), ["..."], 3)
    changed = json.loads(ensemble.read_text())
    changed["members"][0]["weight"] = 0.5
    other = tmp_path / "other.json"
    other.write_text(json.dumps(changed))
    with pytest.raises(UserError, match="the index of another ensemble"):
        recordings.open_index(tmp_path, exported.load(other, Runs.of(runs)))
    gone = {"name": "gone", "weight": 1.0, "signature": "0" * 16}
    for change, why in (
        ({"fusion_name": "rank", "fusion": "mean of ranks"}, "only the mean"),
        ({"members": [{"name": "file", "weight": 1.0}]}, "is a file of scores"),
        ({"members": [gone]}, "model of member 'gone' is gone"),
    ):
        other.write_text(json.dumps(changed | change))
        with pytest.raises(UserError, match=why):
            exported.load(other, Runs.of(runs))


def test_an_exported_ensemble_needs_neither_ray_nor_mlflow_nor_runs(ensemble, runs, sounds, run_command, tmp_path):
    out = tmp_path / "exported"
    done = run_command("ensemble/export.py", "--ensemble", ensemble, "--runs", runs, "--out", out)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in out.iterdir()} == {"README.md", "ensemble.json", "members"}
    vector = exported.load(ensemble, Runs.of(runs)).embed_text([SENTENCE])
    script = (
        "import sys; from pathlib import Path; from ensemble import exported; "
        f"print(exported.load(Path({str(out)!r})).embed_text([{SENTENCE!r}]).tobytes().hex()); "
        "assert not {'ray', 'mlflow'} & set(sys.modules), 'ray or mlflow was imported'"
    )
    alone = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout.strip() == vector.tobytes().hex()
    index = tmp_path / "index"
    words = ("ensemble/search.py", "--ensemble", out, "--index", index, "--runs", tmp_path / "nowhere")
    assert run_command(*words, "--add", sounds, SENTENCE).returncode == 0
    again = run_command("ensemble/export.py", "--ensemble", ensemble, "--runs", runs, "--out", out)
    assert again.returncode == 2
    assert "is there already" in again.stderr


def test_a_registered_model_takes_sentences_and_gives_ranked_clips(ensemble, runs, sounds, run_command, tmp_path):
    models = exported.load(ensemble, Runs.of(runs))
    recordings.add(tmp_path / "index", sounds, models)
    words = ("ensemble/export.py", "--ensemble", ensemble, "--runs", runs, "--index", tmp_path / "index")
    done = run_command(*words, "--register", "tones", "--out", tmp_path / "exported")
    assert done.returncode == 0, done.stderr
    assert "Registered models:/tones/1" in done.stderr
    script = (
        "import json, mlflow; "
        f"mlflow.set_tracking_uri({open_ledger(runs).tracking_uri!r}); "
        f"answers = mlflow.pyfunc.load_model('models:/tones/1').predict({[SENTENCE, CAPTIONS[0]]!r}); "
        "print(json.dumps([[[clip.score, clip.path] for clip in answer] for answer in answers]))"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert elsewhere.returncode == 0, elsewhere.stderr
    answers = [[tuple(clip) for clip in answer] for answer in json.loads(elsewhere.stdout.splitlines()[-1])]
    index = recordings.open_index(tmp_path / "index", models)
    expected = recordings.search(models, index, [SENTENCE, CAPTIONS[0]], 10)
    assert answers == expected
    alone = run_command(*words, "--out", tmp_path / "other")
    assert "--register and --index go together" in alone.stderr
