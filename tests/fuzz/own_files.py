"""Files that the project itself writes or reads: stores, models, checkpoints, indexes, submissions and archives."""

import json
import shutil
import zipfile
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import numpy as np
import soundfile
from kinds import Kind


def build(root):
    """Write every kind of file with the project's own functions, from small models, recordings and a split."""
    import torch

    from data.leakage.exclusions import build_fingerprint_metadata
    from data.schema import EXCLUSIONS, Paraphrase, Query, SourceClip, Split
    from data.store import shard_writer, split_writer
    from data.store.files import write_arrow_table
    from data.store.storage import Store
    from ensemble.index import vector_search
    from ensemble.serving import bundle
    from ensemble.serving.library import Library
    from trainables.networks import dual_encoder
    from trainables.records import checkpoint
    from trainables.records.ensemble_file import Ensemble, Member, write_ensemble
    from trainables.trial import to_json

    rng = np.random.default_rng(0)
    clips = []
    for number in range(12):
        samples = (rng.integers(-9_000, 9_000, 1_600) / 32_768).astype(np.float32)
        captions = ("A dog barks.", f"Rain, no {number}")
        clips.append(SourceClip(f"clotho/challenge/{number}.wav", partial(iter, (samples,)), captions, f"row {number}"))
    folder = root / "store" / "clotho" / "challenge"
    folder.mkdir(parents=True)
    parts = [tuple(clips[:6]), tuple(clips[6:])]
    names = [shard_writer.build_shard_name(number, part, "flac") for number, part in enumerate(parts)]
    written = [
        shard_writer.write_shard(folder / name, "clotho", "challenge", part, "flac")
        for name, part in zip(names, parts, strict=True)
    ]
    split_writer.write_paraphrases(folder, [Paraphrase(clips[0].clip_id, "A dog barks.", ("A hound woofs.",), "m")])
    queries = tuple(Query(f"Rain, no {number}", (f"clotho/challenge/{number}.wav",)) for number in range(12))
    sources = frozenset({"freesound:1"})
    split = Split("clotho", "challenge", tuple(clips), queries=queries, sources=sources, num_listed=12)
    split_writer.write_split(folder, split, "flac", written)
    store = Store.of(root / "store")
    table = EXCLUSIONS.empty_table().from_pylist(
        [{"clip_id": clips[0].clip_id, "split": "clotho/challenge", "reason": "listed"}], schema=EXCLUSIONS
    )
    write_arrow_table(
        root / "store" / "exclusions.arrow", table.replace_schema_metadata(build_fingerprint_metadata(store))
    )

    from data.store.stored_split import open_split
    from trainables.records.embeddings import write_embeddings
    from trainables.training.embedding import embed_split

    members = []
    for seed, signature in enumerate(("0" * 16, "1" * 16)):
        trial = tiny(seed)
        network = dual_encoder.build(trial, ["a dog barks", "rain falls"])
        model = root / "bundle" / "members" / signature
        checkpoint.save_model(model, trial, network, checkpoint.copy_weights(network))
        members.append(Member(f"member {seed}", 0.5, signature, trial=to_json(trial), epoch=1))
        if not seed:
            write_embeddings(
                root / "validation.arrow",
                embed_split(network, trial, signature, open_split(store, "clotho/challenge")),
            )
    write_ensemble(root / "bundle" / "ensemble.json", Ensemble(tuple(members), before_retraining=Ensemble(())))
    (root / "sounds").mkdir()
    for number in range(4):
        soundfile.write(root / "sounds" / f"{number}.wav", rng.uniform(-0.5, 0.5, 1_600), 32_000)
    models = bundle.load_models(root / "bundle")
    write_indexes(root, models, Library, vector_search)
    authors = "- {lastname: Doe, firstname: Jo, email: a@b, corresponding: true, affiliation: {abbreviation: EX}}\n"
    (root / "authors.yaml").write_text(authors * 2)
    write_submissions(root, store)
    write_archives(root)
    write_checkpoint(root / "checkpoint")
    write_model_folder(root / "text")
    torch.save(make_small_network().state_dict(), root / "published.pt")
    write_scores(root / "pool")
    torch.set_num_threads(1)
    return list_kinds(root, models)


def write_indexes(root, models, library, vector_search):
    """An index with a removed recording, one that is searched by reduced vectors, and one of the former version."""
    from trainables.records.embeddings import Embeddings, write_embeddings

    for name, exact_bytes in (("index", vector_search.EXACT_BYTES), ("large", 1)):
        with patch.object(vector_search, "EXACT_BYTES", exact_bytes):
            index = library(root / name, models)
            index.add([root / "sounds"])
            index.remove([root / "sounds" / "3.wav"])
    paths = [root / "sounds" / f"{number}.wav" for number in range(3)]
    vectors_AD, _, _ = models.embed_files(paths)
    former = Embeddings(models.signature, "", "", [*map(str, paths)], [], [], vectors_AD, vectors_AD[:0])
    write_embeddings(root / "former" / "index.arrow", former)


def tiny(seed):
    """A trial of few weights."""
    from data.splits import Splits
    from sweeps.spaces import from_scratch

    splits = Splits("clotho/development", "clotho/validation", "clotho/evaluation", ("clotho/development",))
    base = from_scratch(splits, "float32", "cnn:small", rate=1e-3, epochs=2)
    audio = replace(base.audio, channels=(8,), convolutions=(1,), stem_channels=8, segment_s=1.0)
    audio = replace(audio, front_end=replace(audio.front_end, num_mels=16))  # quick to build
    text = replace(base.text, width=32, layers=1, heads=2)
    return replace(base, audio=audio, text=text, embedding_size=16, seed=seed)


def write_submissions(root, store):
    """A zip of each challenge with the outputs that the project writes, and a description."""
    from data.store.stored_split import open_split
    from ensemble.challenge import formats

    evaluation = formats.read_evaluation_set(open_split(store, "clotho/challenge"))
    scores_QF = np.random.default_rng(1).normal(size=(12, 12))
    for name in ("dcase2023", "dcase2025"):
        challenge = formats.find_challenge(name)
        output, meta = challenge.output_name("A_B", 1), challenge.meta_name("A_B", 1)
        formats.write_csv(root / "zip" / output, challenge.rows(scores_QF, evaluation))
        formats.write_yaml(root / "zip" / meta, {"submission": {"label": challenge.format_label("A_B", 1)}}, "form")
        formats.write_zip(root / f"{name}.zip", root / "zip", [output, meta])
    shutil.rmtree(root / "zip")


def write_archives(root):
    """The recordings in a 7z archive and in a zip archive."""
    import py7zr

    with py7zr.SevenZipFile(root / "recordings.7z", "w") as archive:
        archive.writeall(root / "sounds", "sounds")
    with zipfile.ZipFile(root / "recordings.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((root / "sounds").iterdir()):
            archive.write(path, f"sounds/{path.name}")


def write_checkpoint(folder):
    """A checkpoint of an interrupted training, after a step of the optimizer."""
    from trainables.networks import dual_encoder
    from trainables.records import checkpoint

    trial = tiny(0)
    network = dual_encoder.build(trial, ["a dog barks", "rain falls"])
    optimizer = take_step(network)
    progress = checkpoint.TrainingProgress(
        1, 1, 0.5, 2, 1, 0.25, validation_losses=(0.75,), history=({"epoch": 1, "map10": 0.25},)
    )
    best = checkpoint.copy_weights(network)
    checkpoint.take_snapshot(trial, network, optimizer, progress, best).write(folder)


def take_step(network, optimizer=None):
    """The optimizer of a network, after a step with gradients of 0."""
    import torch

    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = optimizer or torch.optim.Adam(trained)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return optimizer


def make_small_network():
    """A network of few weights, which stands for a published one."""
    import torch

    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))


def write_model_folder(folder):
    """A folder of sentence-transformers, of whose files only those are real that list or describe others."""
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "modules.json").write_text(json.dumps(modules, indent=2))
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "1_Pooling" / "config.json").write_text("{}")


def write_scores(folder):
    """A folder of the score matrices of two systems."""
    rng = np.random.default_rng(2)
    (folder / "validation").mkdir(parents=True)
    for name in ("scores", "other"):
        np.save(folder / "validation" / f"{name}.npy", rng.normal(size=(12, 6)))
    np.save(folder / "validation" / "relevance.npy", np.arange(12) % 6)
    np.save(folder / "validation" / "groups.npy", np.arange(12) // 2)


def list_kinds(root, models):
    """Each kind of file by its name."""
    from data.sources.download import extract_archive
    from ensemble.challenge.metadata import read_authors
    from trainables.encoders.published import load_checkpoint

    split, pool = root / "store" / "clotho" / "challenge", root / "pool" / "validation"
    manifest = json.loads((split / "manifest.json").read_text())
    clips = split / manifest["shards"][0]
    kinds = {
        "ensemble.json": Kind(root / "bundle" / "ensemble.json", partial(read_ensemble_file, root)),
        "validation.arrow": Kind(root / "validation.arrow", lambda out: read_embeddings_file(root)),
        "authors.yaml": Kind(root / "authors.yaml", lambda out: read_authors(root / "authors.yaml")),
        "recordings.7z": Kind(
            root / "recordings.7z", lambda out: extract_archive(root / "recordings.7z", out / "below" / "extracted")
        ),
        "recordings.zip": Kind(root / "recordings.zip", lambda out: read_recordings(root / "recordings.zip")),
        "published.pt": Kind(
            root / "published.pt", lambda out: load_checkpoint(make_small_network(), root / "published.pt")
        ),
        "modules.json": Kind(root / "text" / "modules.json", lambda out: read_model_folder(root / "text")),
    }

    def add(folder, names, read):
        kinds.update({name: Kind(folder / name, read) for name in names})

    read_small, read_large = (partial(read_index, root / name, models=models) for name in ("index", "large"))
    (part,) = (root / "index" / "parts").glob("*/")
    add(part, ("recordings.arrow", "rows.arrow", "vectors.bin", "removed-1.bin"), read_small)
    kinds["index/manifest.json"] = Kind(root / "index" / "manifest.json", read_small)
    (reduction,) = (root / "large" / "reductions").glob("*/reduction.safetensors")
    kinds |= {"reduction.safetensors": Kind(reduction, read_large),
              "codes": Kind(next((root / "large" / "parts").glob("*/codes-*/passages.bin")), read_large),
              "large/manifest.json": Kind(root / "large" / "manifest.json", read_large)}  # fmt: skip
    read_former = partial(read_index, root / "former", models=models)
    add(root / "former", ("index.arrow",), read_former)
    member = root / "bundle" / "members" / ("0" * 16)
    add(member, ("trial.json", "model.safetensors", "tokenizer.json"), lambda out: read_model(root))
    files = ("best.safetensors", "optimizer.safetensors", "progress.json")
    add(root / "checkpoint", files, lambda out: read_checkpoint(root / "checkpoint"))
    add(pool, ("scores.npy", "relevance.npy", "groups.npy"), lambda out: read_scores(root / "pool"))
    for challenge in ("dcase2023", "dcase2025"):
        path = root / f"{challenge}.zip"
        kinds[path.name] = Kind(path, lambda out, path=path, challenge=challenge: read_submission(path, challenge))
    parts = {name: split / manifest[name] for name in ("index", "queries", "set_aside", "sources")}
    parts |= {"manifest.json": split / "manifest.json", "paraphrases.arrow": split / "paraphrases.arrow"}
    parts |= {"clips": clips, "summary": clips.with_suffix(".json")}
    parts |= {"exclusions.arrow": root / "store" / "exclusions.arrow"}
    kinds.update({name: Kind(path, lambda out: read_store(root / "store")) for name, path in parts.items()})
    vectors = root / "vectors.arrow"
    shutil.copy(root / "former" / "index.arrow", vectors)
    return kinds | {"vectors.arrow, byte by byte": Kind(vectors, lambda out: read_vectors(vectors), invert_byte)}


def invert_byte(contents, name, number):
    """The contents with one byte inverted; the places of any count of numbers are spread over the file."""
    index = int(number * 0.618034 % 1 * len(contents))
    return contents[:index] + bytes([contents[index] ^ 0xFF]) + contents[index + 1 :]


def read_vectors(path):
    from trainables.records.embeddings import read_embeddings

    found = read_embeddings(path)
    assert len(found.clip_ids) == len(found.audio_AD)


def read_ensemble_file(root, out):
    from ensemble.export import export_ensemble
    from sweeps.planning.retraining import plan_retrainings
    from trainables.records.ensemble_file import read_ensemble
    from trainables.records.run_storage import RunStorage

    path = root / "bundle" / "ensemble.json"
    export_ensemble(path, out / "below" / "exported", RunStorage.of(out / "runs"))
    plan_retrainings(read_ensemble(path), path, "pretraining")


def read_index(folder, out, models):
    from ensemble.index import vector_search
    from ensemble.serving.library import Library

    shutil.copytree(folder, out / "index")
    with patch.object(vector_search, "EXACT_BYTES", 1 if folder.name == "large" else vector_search.EXACT_BYTES):
        library = Library(out / "index", models)
        for hit in library.search("a dog barks", k=5):
            library.get(hit.recording.id)
            library.read_peaks(hit.recording.id)
        library.search_moments("a dog barks", k=5)
        library.list_folders()
        library.sync(folder.parent / "sounds")


def read_embeddings_file(root):
    from ensemble.pool.candidates import Candidate, align_scores, build_relevance
    from trainables.records.embeddings import read_embeddings

    found = read_embeddings(root / "validation.arrow")
    build_relevance(found.relevant_clip_ids, found.clip_ids)
    with np.errstate(all="ignore"):
        align_scores(found, found, Candidate("a"), Candidate("a"))[0](0, len(found.queries))


def read_store(folder):
    from data.errors import UserError
    from data.leakage import exclusions
    from data.preparation import describe, verify
    from data.store import storage
    from data.store.stored_split import open_split
    from ensemble.challenge import formats

    storage.clear_mapped_files()
    problems = []
    split = open_split(folder, "clotho/challenge")
    problems += verify.check_tables(split)
    problems += verify.check_shard(split, 0)
    for clip, count in enumerate(split.num_samples.tolist()):
        try:
            split.read_window(clip, 0, min(count, 2_000))
        except UserError as error:
            problems.append(str(error))
    evaluation = formats.read_evaluation_set(split)
    exclusions.select_pairs(split, exclusions.read_excluded_ids(folder, ["clotho/challenge"]))
    split.read_paraphrases()
    split.read_warnings()
    describe.format_exclusions(folder)
    problems += verify.check_exclusions(storage.Store.of(folder), ["clotho/challenge"])
    assert evaluation.files
    if problems:
        raise UserError(problems[0])


def read_submission(path, challenge):
    from data.errors import UserError
    from ensemble.challenge import validation
    from ensemble.challenge.formats import EvaluationSet

    validation.guess_challenge(path)
    files = [f"{number}.wav" for number in range(12)]
    evaluation = EvaluationSet("clotho/challenge", [f"Rain, no {number}" for number in range(12)], files, {})
    problems = validation.find_problems(path, challenge, evaluation)
    validation.list_reports(path)
    if any("output.csv" in problem or "can't be read" in problem for problem in problems):
        raise UserError("; ".join(problems))


def read_recordings(path):
    from data.errors import UserError
    from data.sources.archives import decode_member, list_members
    from data.waveform import AudioError

    for member in list_members(path):
        try:
            for _ in decode_member(member):
                pass
        except AudioError as error:  # a preparation lists the recording as skipped, with this reason
            raise UserError(f"{member.info.filename}: {error}") from error


def read_model(root):
    from ensemble.selection import costs
    from ensemble.serving import bundle
    from trainables.trial import load_trial

    folder = root / "bundle" / "members" / ("0" * 16)
    costs.count_parameters(folder)
    load_trial(folder)
    bundle.load_models(root / "bundle").embed_text(["a dog barks"])


def read_checkpoint(folder):
    import torch

    from trainables.records import checkpoint
    from trainables.trial import load_trial

    trial, model = load_trial(folder), checkpoint.load_model(folder)
    optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad])
    progress, best = checkpoint.load_training(folder, model, optimizer)
    take_step(model, optimizer)
    model.load_state_dict(best)
    trial.is_over(progress.epochs_done, progress.validation_losses)
    assert all("epoch" in metrics for metrics in progress.history)


def read_model_folder(folder):
    from trainables.encoders import model_files

    model_files.require_model_folder(folder)
    model_files.hash_model(folder, with_layers=True)


def read_scores(folder):
    from ensemble.pool import candidates, evaluation, score_matrices
    from ensemble.selection import greedy
    from ensemble.selection.pruned_pool import prune

    score_files = candidates.find_score_files([folder])
    pool = candidates.load_pool(None, score_files, "validation")
    for scores, fusion in ((pool, "mean"), (pool, "zscore"), (score_matrices.transpose(pool), "rank")):
        fused = score_matrices.apply_fusion(scores, fusion)
        selection = greedy.select(prune(fused, "map10", threads=1), greedy.SelectionConfig(max_size=3))
        evaluation.compare_systems(fused, {"selected": selection.weights, "mean": [1, 1]}, ["map10"])
