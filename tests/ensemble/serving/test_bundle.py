"""An ensemble's models on their own: exported, searched with, and served by MLflow."""

import ast
import csv
import importlib.metadata
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

from data.decoding.audio import decode_file
from data.errors import UserError
from data.loading import clips
from data.loading.clips import load_files
from data.sources.audio_files import FileProblems
from data.store.stored_split import open_split
from ensemble import search
from ensemble.export import export_ensemble
from ensemble.serving import bundle, registration
from ensemble.serving.library import Library
from trainables import encoders
from trainables import trial as trials
from trainables.records import checkpoint
from trainables.records.embeddings import BANK_FILE, read_embeddings, write_embeddings
from trainables.records.mlflow_ledger import open_ledger
from trainables.records.run_storage import RunStorage
from trainables.training import embedding
from trainables.training.embedding import embed_audio, embed_files, embed_split, embed_text
from trainables.training.query_bank import embed_bank

CAPTIONS = ["a low tone beats once", "a high tone beats twice", "a middle tone, again and again"]
SENTENCE = "a dog barks while it rains"
HALF_PRECISION = 5e-4
"""Error of a score by vectors in half precision."""


def test_files_are_embedded_as_a_store_keeps_them(tones, tone_store, runs):
    """As decoded, resampled, rounded and cut by data/prepare.py: the same vectors to the last bit."""
    folder = next((runs / "models").iterdir())
    network, trial = checkpoint.load_model(folder), trials.load_trial(folder)
    split = open_split(tone_store, "folder/test")
    stored = embed_split(network, trial, "", split)
    paths = [Path(tones) / clip_id.removeprefix("folder/test/") for clip_id in split.clip_ids]
    vectors_AD, embedded, problems = embed_files(network, trial, paths)
    assert embedded == paths
    assert not problems.skipped
    np.testing.assert_array_equal(vectors_AD, stored.audio_AD)


def test_no_more_than_the_beginning_of_a_file_counts(sounds, runs):
    folder = next((runs / "models").iterdir())
    network, trial = checkpoint.load_model(folder), trials.load_trial(folder)
    path = sounds / "below" / "[wind].ogg"
    found = list(load_files([path], trial.audio.segment_s, 2.0, 4, FileProblems()))
    assert found[0].segments_per_clip.tolist() == [2]
    assert embed_audio(network, trial, found)[0].shape == (1, trial.embedding_size)


def test_the_command_embeds_sounds_and_sentences_of_ones_own(sounds, runs, run_command, call_command, tmp_path):
    """Once in a process of its own, as a user runs it."""
    folder = sorted((runs / "models").iterdir())[0]
    sentences = tmp_path / "sentences.csv"
    sentences.write_text('caption,more\n"a dog, barking",x\nrain falls,y\n', encoding="utf-8")
    words = ("trainables/embed.py", "--audio", sounds, "--captions", sentences, "--out", tmp_path / "out.arrow")
    done = run_command(*words, "--checkpoint", folder)
    assert done.returncode == 0, done.stderr
    assert "skipped" in done.stderr
    assert "torn.wav: truncated" in done.stderr
    found = read_embeddings(tmp_path / "out.arrow")
    assert found.clip_ids == ["below/[wind].ogg", "below/rain.flac", "dög, barking.wav"]
    assert found.queries == ["a dog, barking", "rain falls"]
    np.testing.assert_allclose(np.linalg.norm(found.audio_AD, axis=1), 1, atol=1e-5)
    assert call_command(*words, "--checkpoint", folder.name, "--runs", runs).returncode == 0


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--checkpoint", "{runs}", "--audio", "{sounds}"], "holds no trained model"),
        (["--checkpoint", "0123456789abcdef", "--audio", "{sounds}"], "holds no runs"),
        (["--checkpoint", "{model}", "--audio", "{runs}/absent"], "isn't a folder"),
        (["--checkpoint", "{model}", "--audio", "{runs}/models"], "holds no audio file"),
        (["--checkpoint", "{model}", "--captions", "{empty}"], "holds no sentence"),
        (["--checkpoint", "{model}", "--captions", "{marks}"], "marks.txt, line 2: '?!' contains no word"),
        (["--checkpoint", "{model}", "--captions", "{table}"], "caption"),
        (["--checkpoint", "{model}"], "nothing to embed"),
    ],
)
def test_what_can_not_be_embedded_is_named(words, why, runs, sounds, tmp_path, call_command):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "marks.txt").write_text("rain\n?!\n")
    (tmp_path / "table.csv").write_text("text\nrain\n")
    places = {name: tmp_path / f"{name}.{'csv' if name == 'table' else 'txt'}" for name in ("empty", "marks", "table")}
    given = [word.format(runs=runs, sounds=sounds, model=next((runs / "models").iterdir()), **places) for word in words]
    failed = call_command("trainables/embed.py", *given, "--out", tmp_path / "out.arrow", "--runs", runs)
    assert failed.returncode == 2
    assert why in failed.stderr
    assert not (tmp_path / "out.arrow").exists()


def test_dot_products_are_the_weighted_means_of_the_members(ensemble, runs, sounds):
    models = bundle.load_models(ensemble, RunStorage.of(runs))
    paths = [sounds / "below" / "rain.flac", sounds / "dög, barking.wav"]
    audio_AD, _, _ = models.embed_files(paths)
    scores = models.embed_text([SENTENCE]) @ audio_AD.T
    expected = sum(
        own.weight * (embed_text(own.model, own.trial, [SENTENCE]) @ embed_files(own.model, own.trial, paths)[0].T)
        for own in models.members
    )
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def write_ensemble(path, signatures):
    members = [{"name": f"member {signature}", "weight": 1.0, "signature": signature} for signature in signatures]
    path.write_text(json.dumps({"format_version": 3, "members": members}))
    return path


def test_a_file_counts_where_every_member_has_heard_it(runs, sounds, save_model, tmp_path):
    """A member that hears a second doesn't notice that a file is torn later on."""
    trial = trials.load_trial(runs / "models" / f"{0:016x}")
    for signature, longest_s in (("a" * 16, 1.0), ("b" * 16, 30.0)):
        save_model(tmp_path, replace(trial, longest_audio_s=longest_s), signature)
    paths = [sounds / "torn.wav", sounds / "below" / "rain.flac"]
    for order in ("ab", "ba"):
        path = write_ensemble(tmp_path / "ensemble.json", [letter * 16 for letter in order])
        models = bundle.load_models(path, RunStorage.of(tmp_path))
        vectors_AD, embedded, problems = models.embed_files(paths)
        assert embedded == paths[1:]
        assert list(problems.skipped) == paths[:1]
        np.testing.assert_allclose(vectors_AD, models.embed_files(paths[1:])[0], atol=1e-6)
        assert models.embed_files(paths[:1])[0].shape == (0, models.embedding_size)


def test_an_audio_model_of_hugging_face_is_exported_with_its_feature_extractor(runs, sounds, save_model, tmp_path):
    folder = tmp_path / "my-ast"
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    ASTModel(ASTConfig(**shape, max_length=98, num_mel_bins=32)).save_pretrained(folder)
    ASTFeatureExtractor(max_length=98, num_mel_bins=32).save_pretrained(folder)
    audio = encoders.config_of_variant("audio", f"huggingface:{folder}")
    trial = replace(trials.load_trial(runs / "models" / f"{0:016x}"), audio=audio, pretraining=None)
    save_model(tmp_path, trial, "a" * 16)
    shutil.rmtree(folder)
    path = write_ensemble(tmp_path / "ensemble.json", ["a" * 16])
    export_ensemble(path, tmp_path / "exported", RunStorage.of(tmp_path))
    expected = bundle.load_models(path, RunStorage.of(tmp_path)).embed_files([sounds / "below" / "rain.flac"])[0]
    shutil.rmtree(tmp_path / "models")
    models = bundle.load_models(tmp_path / "exported")
    np.testing.assert_array_equal(models.embed_files([sounds / "below" / "rain.flac"])[0], expected)
    library = Library(tmp_path / "index", models)
    library.add([sounds / "below"])
    assert len(library.search(SENTENCE)) == 2


def test_members_that_cut_alike_share_what_is_decoded(ensemble, runs, sounds, monkeypatch):
    decoded = []
    monkeypatch.setattr(clips, "decode_file", lambda path: decoded.append(path) or decode_file(path))
    paths = [sounds / "below" / "rain.flac", sounds / "dög, barking.wav"]
    bundle.load_models(ensemble, RunStorage.of(runs)).embed_files(paths)
    assert decoded == paths


def test_models_are_where_this_process_embeds_fastest(ensemble, runs, monkeypatch):
    monkeypatch.setattr(embedding, "fastest_device", lambda: torch.device("meta"))
    members = bundle.load_models(ensemble, RunStorage.of(runs)).members
    assert {weights.device.type for member in members for weights in member.model.parameters()} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_gives_the_scores_of_a_cpu(ensemble, runs, sounds, monkeypatch):
    paths = [sounds / "below" / "rain.flac", sounds / "dög, barking.wav"]
    models = bundle.load_models(ensemble, RunStorage.of(runs))
    assert {weights.device.type for weights in models.members[0].model.parameters()} == {"cuda"}
    scores = models.embed_text([SENTENCE]) @ models.embed_files(paths)[0].T
    monkeypatch.setattr(embedding, "fastest_device", lambda: torch.device("cpu"))
    plain = bundle.load_models(ensemble, RunStorage.of(runs))
    np.testing.assert_allclose(scores, plain.embed_text([SENTENCE]) @ plain.embed_files(paths)[0].T, atol=1e-3)


CASES = Path(__file__).parents[3].parent / "shared" / "cases" / "audio.py"


@pytest.mark.skipif(not CASES.exists(), reason=f"{CASES} is absent")
def test_search_and_embed_treat_the_shared_cases_alike(ensemble, runs, tmp_path, call_command):
    """Each file is embedded, named with the reason, or embedded with a warning, as its case says."""
    subprocess.run([sys.executable, CASES, tmp_path / "audio"], check=True, capture_output=True)
    with (tmp_path / "audio" / "expected.csv").open() as file:
        cases = {row["file_name"]: row["must"] for row in csv.DictReader(file)}
    words = ("ensemble/search.py", ensemble, "--runs", runs, "--index", tmp_path / "index")
    added = call_command(*words, "--add", tmp_path / "audio")
    model = next((runs / "models").iterdir())
    words = ("trainables/embed.py", "--checkpoint", model, "--audio", tmp_path / "audio")
    embedded = call_command(*words, "--out", tmp_path / "out.arrow")
    models = bundle.load_models(ensemble, RunStorage.of(runs))
    kept = {recording.path.name for recording in Library(tmp_path / "index", models).recordings}
    assert kept == set(read_embeddings(tmp_path / "out.arrow").clip_ids)
    assert kept == {name for name, must in cases.items() if must in ("keep", "warn")}
    for done in (added, embedded):
        assert done.returncode == 0
        for name, must in cases.items():
            said = [line for line in done.stderr.splitlines() if f"/{name}: " in line]
            assert len(said) == (must in ("name", "warn")), (name, said)
            assert all(("skipped" if must == "name" else "warning") in line for line in said)
        assert "2 other files aren't audio" in done.stderr


@pytest.mark.parametrize(
    ("contents", "sentences", "problems"),
    [
        (b"\xef\xbb\xbfrain\nwind\n", ["rain", "wind"], []),
        ("rain\nM\u00e4rkt\n".encode("utf-16"), ["rain", "M\u00e4rkt"], []),
        (b"rain\nM\xe4rkt\n\n?!\nwind", ["rain", "wind"], ["line 2: byte 0xe4", "line 4: '?!' contains no word"]),
        (b"", [], []),
    ],
)
def test_sentences_are_read_in_other_encodings_or_named_by_line(contents, sentences, problems, caplog):
    assert list(search.iter_lines(io.BytesIO(contents))) == sentences
    assert len(caplog.messages) == len(problems)
    for problem, message in zip(problems, caplog.messages, strict=True):
        assert problem in message


def test_what_can_not_be_searched_is_named(ensemble, runs, sounds, tmp_path, call_command):
    words = ("ensemble/search.py", ensemble, "--runs", runs, "--index", tmp_path)
    assert "create it with --add" in call_command(*words, SENTENCE).stderr
    library = Library(tmp_path, bundle.load_models(ensemble, RunStorage.of(runs)))
    library.add([sounds])
    with pytest.raises(UserError, match="contains no word"):
        library.search("...")
    changed = json.loads(ensemble.read_text())
    changed["members"][0]["weight"] = 0.5
    other = tmp_path / "other.json"
    other.write_text(json.dumps(changed))
    with pytest.raises(UserError, match="the index of another ensemble"):
        Library(tmp_path, bundle.load_models(other, RunStorage.of(runs)))
    gone = {"name": "gone", "weight": 1.0, "signature": "f" * 16}
    for change, why in (
        ({"fusion": "rank"}, "needs the fusion by the mean"),
        ({"members": [{"name": "file", "weight": 1.0}]}, "is a file of scores"),
        ({"members": [gone]}, "model of member 'gone' no longer exists"),
    ):
        other.write_text(json.dumps(changed | change))
        with pytest.raises(UserError, match=why):
            bundle.load_models(other, RunStorage.of(runs))


@pytest.fixture
def normalised(runs, ensemble, tmp_path):
    """The ensemble with query banks, by which its scores are normalised: the path of its ensemble.json, in its runs."""
    shutil.copytree(runs, tmp_path / "banked")
    for folder in (tmp_path / "banked" / "models").iterdir():
        network, trial = checkpoint.load_model(folder), trials.load_trial(folder)
        write_embeddings(folder / BANK_FILE, embed_bank(network, trial, folder.name, CAPTIONS))
    content = json.loads(ensemble.read_text())
    content |= {"fusion": "inverted-softmax", "normalisation": {"temperature": 0.05}}
    path = tmp_path / "banked" / "ensemble.json"
    path.write_text(json.dumps(content))
    return path


def test_an_index_ranks_by_normalised_scores(normalised, sounds, tmp_path):
    """Whether its recordings were added together or one by one. Expected: the cosines of each member minus the offsets
    by its bank, written out.
    """
    models = bundle.load_models(normalised, RunStorage.of(normalised.parent))
    library = Library(tmp_path / "index", models)
    library.add([sounds])
    paths = [recording.path for recording in library.recordings]
    expected = np.zeros(len(paths))
    for own in models.members:
        audio_AD = embed_files(own.model, own.trial, paths)[0].astype(np.float64)
        (vector_D,) = embed_text(own.model, own.trial, [SENTENCE])
        offset_A = 0.05 * np.log(np.exp(audio_AD @ own.bank.text_QD.T / 0.05).mean(axis=1))
        expected += own.weight * (audio_AD @ vector_D - offset_A)
    hits = library.search(SENTENCE)
    assert [hit.path for hit in hits] == [paths[clip] for clip in np.argsort(-expected)]
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(expected)[::-1], atol=HALF_PRECISION)
    single = Library(tmp_path / "one by one", models)
    for path in paths:
        single.add([path])
    assert [(hit.path, hit.score) for hit in single.search(SENTENCE)] == [
        (hit.path, pytest.approx(hit.score, abs=HALF_PRECISION)) for hit in hits
    ]


def test_models_need_whole_banks_of_their_own(normalised, ensemble, runs, tmp_path):
    storage = RunStorage.of(normalised.parent)
    plain = bundle.load_models(ensemble, RunStorage.of(runs))
    models = bundle.load_models(normalised, storage)
    assert models.embedding_size == plain.embedding_size + len(models.members)
    assert models.signature != plain.signature
    path = sorted((normalised.parent / "models").iterdir())[0] / BANK_FILE
    bank = read_embeddings(path)
    for vectors in (bank.text_QD[:, 1:], bank.text_QD * np.float32("nan")):
        write_embeddings(path, replace(bank, audio_AD=vectors[:0], text_QD=vectors))
        with pytest.raises(UserError, match="isn't the query bank of this model"):
            bundle.load_models(normalised, storage)
    path.unlink()
    with pytest.raises(UserError, match=r"member 'member 0': .*bank.arrow doesn't exist.*embed.py bank"):
        bundle.load_models(normalised, storage)
    content = json.loads(normalised.read_text())
    for change, why in (
        ({"fusion": "dynamic-inverted-softmax"}, "an index needs the fusion by the mean of scores or by inverted"),
        ({"fusion": "mean"}, "normalisation: the fusions"),
        ({"normalisation": None}, "normalisation: the fusions"),
        ({"normalisation": {"temperature": 1e-9}}, "normalisation.temperature"),
    ):
        normalised.write_text(json.dumps(content | change))
        with pytest.raises(UserError, match=why):
            bundle.load_models(normalised, storage)


def tree(folder):
    """Every path below a folder, with what a link points to and the contents of a file."""
    return {
        path: path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.fixture
def bundle_of_a_stranger(ensemble, runs, tmp_path):
    """An exported ensemble, below folders, with a file that isn't of it at its root."""
    (tmp_path / "downloads" / "bundle").mkdir(parents=True)
    (tmp_path / "downloads" / "bundle" / ".bashrc").write_text("echo OWNED")
    folder = tmp_path / "downloads" / "bundle" / "a" / "b" / "c"
    export_ensemble(ensemble, folder, RunStorage.of(runs))
    return folder


def test_a_member_with_a_path_for_a_signature_is_not_exported(bundle_of_a_stranger, call_command, tmp_path):
    path = bundle_of_a_stranger / "ensemble.json"
    content = json.loads(path.read_text())
    content["members"].append({"name": "evil", "weight": 0, "signature": "../../../.."})
    path.write_text(json.dumps(content))
    before = tree(tmp_path)
    done = call_command("ensemble/export.py", "--ensemble", path, "--out", tmp_path / "new" / "out")
    assert done.returncode == 2
    assert "members[2].signature: a signature consists of 16 lowercase hexadecimal digits" in done.stderr
    assert tree(tmp_path) == before


@pytest.mark.parametrize("kind", ["link to a file", "link to a folder", "linked model", "pipe", "broken weights"])
def test_an_export_copies_regular_files_alone_and_leaves_nothing_behind(
    kind, bundle_of_a_stranger, call_command, tmp_path
):
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "id").write_text("SECRET")
    model = min((bundle_of_a_stranger / "members").iterdir())
    match kind:
        case "link to a file":
            (model / "notes.txt").symlink_to(tmp_path / "private" / "id")
        case "link to a folder":
            (model / "more").symlink_to(tmp_path / "private")
        case "linked model":
            model.rename(tmp_path / "private" / "model")
            model.symlink_to(tmp_path / "private" / "model")
        case "pipe":
            os.mkfifo(model / "notes.txt")
        case "broken weights":
            (model / "model.safetensors").write_bytes(b"SECRET")
    before = set(tmp_path.rglob("*"))
    done = call_command(
        "ensemble/export.py", "--ensemble", bundle_of_a_stranger / "ensemble.json", "--out", tmp_path / "new" / "out"
    )
    assert done.returncode == 2
    assert str(model) in done.stderr or kind == "broken weights"
    assert {"pipe": "neither a file nor a folder", "broken weights": "can't be loaded"}.get(
        kind, "is a link"
    ) in done.stderr
    assert set(tmp_path.rglob("*")) == before


def test_an_exported_ensemble_needs_neither_ray_nor_mlflow_nor_runs(ensemble, runs, sounds, call_command, tmp_path):
    """A process of its own shows what is imported."""
    out = tmp_path / "exported"
    done = call_command("ensemble/export.py", "--ensemble", ensemble, "--runs", runs, "--out", out)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in out.iterdir()} == {"README.md", "ensemble.json", "members"}
    vector = bundle.load_models(ensemble, RunStorage.of(runs)).embed_text([SENTENCE])
    script = (
        "import sys; from pathlib import Path; from ensemble.serving import bundle; "
        f"print(bundle.load_models(Path({str(out)!r})).embed_text([{SENTENCE!r}]).tobytes().hex()); "
        "assert not {'ray', 'mlflow'} & set(sys.modules), 'ray or mlflow was imported'"
    )
    alone = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3]
    )
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout.strip() == vector.tobytes().hex()
    index = tmp_path / "index"
    words = ("ensemble/search.py", out, "--index", index, "--runs", tmp_path / "nowhere")
    assert call_command(*words, "--add", sounds, SENTENCE).returncode == 0
    again = call_command("ensemble/export.py", "--ensemble", ensemble, "--runs", runs, "--out", out)
    assert again.returncode == 2
    assert "already exists" in again.stderr


ROOT = Path(__file__).parents[3]


def file_of(module):
    """The file of one of our modules; None for others."""
    place = ROOT / Path(*module.split("."))
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.exists()), None)


def imports(nodes):
    """The modules that these import, or may: of `from a import b`, also a.b."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_what_a_registered_model_imports_is_required():
    """From what MLflow runs on, and every encoder: what modules import at once of ours, and all they import of others.

    Imports of ours within functions are for commands, but for those of the model that MLflow runs.
    """
    todo = ["ensemble.serving.mlflow_model", "ensemble.serving.library"]
    todo += [".".join(path.relative_to(ROOT).with_suffix("").parts)
             for path in (ROOT / "trainables" / "encoders").glob("*/*.py")]  # fmt: skip
    seen, others = set(), {}
    while todo:
        module = todo.pop()
        if module in seen or (path := file_of(module)) is None:
            continue
        seen.add(module)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        todo += imports(tree.body)
        others |= {name.partition(".")[0]: module for name in imports(ast.walk(tree)) if file_of(name) is None}
    ours = {"data", "trainables", "sweeps", "ensemble"}
    needed = {name: module for name, module in others.items() if name not in sys.stdlib_module_names | ours}
    assert needed["torch"]
    names_of_module = importlib.metadata.packages_distributions()
    required = {name.replace("_", "-") for name in registration.REQUIREMENTS}
    missing = {}
    for name, module in needed.items():
        names = {one.lower().replace("_", "-") for one in names_of_module.get(name, [name])}
        if not required & names:
            missing[name] = module
    assert missing == {}


def test_a_registered_model_takes_sentences_and_gives_ranked_clips(
    ensemble, runs, sounds, run_command, call_command, tmp_path
):
    """It is exported in a process, as a user does, and served in another, from elsewhere, as MLflow does."""
    models = bundle.load_models(ensemble, RunStorage.of(runs))
    library = Library(tmp_path / "index", models)
    library.add([sounds])
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
    for answer, text in zip(answers, (SENTENCE, CAPTIONS[0]), strict=True):
        assert [path for _, path in answer] == [str(hit.path) for hit in library.search(text)]
        np.testing.assert_allclose(
            [score for score, _ in answer], [hit.score for hit in library.search(text)], atol=1e-6
        )
    alone = call_command(*words, "--out", tmp_path / "other")
    assert "--register and --index go together" in alone.stderr
