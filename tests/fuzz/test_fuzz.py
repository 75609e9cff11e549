"""Files that may come from a stranger, mutated: each is read or refused, and nothing is written beside the output.

A process of its own reads them, as a crash would end the test run: what Arrow, zlib or torch do with a damaged file may
be a signal. Each mutation follows from the name of a file and a number, which a failure gives. CI reads 100 mutations
of each file, and `bash .ci/run --all` 2,000 (the test marked slow); any other number:

    python tests/fuzz/test_fuzz.py FOLDER COUNT [FILE ...]
"""

import io
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import traceback
import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).parents[2]
EXTRA_BYTES = 4 * 2**30
"""Address space that reading may take beyond what the process has before it begins."""

KINDS = {
    "ensemble.json", "index.arrow", "files.json", "validation.arrow", "manifest.json", "index", "queries", "set_aside",
    "sources", "clips", "summary", "paraphrases.arrow", "exclusions.arrow", "dcase2023.zip", "dcase2025.zip",
    "authors.yaml", "recordings.7z", "recordings.zip", "trial.json", "model.safetensors", "tokenizer.json",
    "best.safetensors", "optimizer.safetensors", "progress.json", "modules.json", "published.pt", "scores.npy",
    "relevance.npy", "groups.npy",
}  # fmt: skip


@pytest.mark.parametrize("count", [100, pytest.param(2_000, marks=pytest.mark.slow)])
def test_a_mutated_file_of_a_stranger_is_read_or_refused_and_nothing_else_is_written(count, tmp_path):
    command = [sys.executable, __file__, tmp_path / "files", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, cwd=ROOT)
    assert done.returncode == 0, f"ended with {done.returncode}\n{done.stderr[-4_000:]}"
    counts = {line.split()[0]: tuple(map(int, line.split()[1:])) for line in done.stdout.splitlines()}
    assert counts.keys() == KINDS
    assert {num_read + num_refused for num_read, num_refused in counts.values()} == {count}
    assert all(num_refused for _, num_refused in counts.values())
    assert sum(num_read for num_read, _ in counts.values()) > count


# What the child does.


def build(root):
    """Write every kind of file with the project's own functions, from small models, recordings and a split."""
    import torch

    from data.leakage.exclusions import build_fingerprint_metadata
    from data.schema import EXCLUSIONS, Paraphrase, Query, SourceClip, Split
    from data.store import shard_writer, split_writer
    from data.store.files import write_arrow_table
    from data.store.storage import Store
    from ensemble.serving import audio_index, bundle
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
        checkpoint.save_model(model, trial, network.text, checkpoint.copy_weights(network))
        members.append(Member(f"member {seed}", 0.5, signature, trial=to_json(trial), epoch=1))
        if not seed:
            write_embeddings(
                root / "validation.arrow",
                embed_split(network, trial, signature, open_split(store, "clotho/challenge")),
            )
    write_ensemble(root / "bundle" / "ensemble.json", Ensemble(tuple(members), before_retraining=Ensemble(())))
    (root / "sounds").mkdir()
    for number in range(3):
        soundfile.write(root / "sounds" / f"{number}.wav", rng.uniform(-0.5, 0.5, 1_600), 32_000)
    models = bundle.load_models(root / "bundle")
    audio_index.update_index(root / "index", root / "sounds", models)
    authors = "- {lastname: Doe, firstname: Jo, email: a@b, corresponding: true, affiliation: {abbreviation: EX}}\n"
    (root / "authors.yaml").write_text(authors * 2)
    write_submissions(root, store)
    write_archives(root)
    write_checkpoint(root / "checkpoint")
    write_model_folder(root / "text")
    torch.save(make_small_network().state_dict(), root / "published.pt")
    write_scores(root / "pool")
    return models


def tiny(seed):
    """A trial of few weights."""
    from dataclasses import replace

    from data.splits import Splits
    from sweeps.spaces import from_scratch

    splits = Splits("clotho/development", "clotho/validation", "clotho/evaluation", ("clotho/development",))
    base = from_scratch(splits, "float32", "cnn:small", rate=1e-3, epochs=2)
    audio = replace(base.audio, channels=(8,), convolutions=(1,), stem_channels=8, segment_s=1.0)
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


def list_files(root):
    """The file of each kind, by the name of the kind."""
    folder = root / "store" / "clotho" / "challenge"
    manifest = json.loads((folder / "manifest.json").read_text())
    files = {
        "ensemble.json": root / "bundle" / "ensemble.json",
        "index.arrow": root / "index" / "index.arrow",
        "files.json": root / "index" / "files.json",
        "manifest.json": folder / "manifest.json",
        "clips": folder / manifest["shards"][0],
        "summary": (folder / manifest["shards"][0]).with_suffix(".json"),
        "paraphrases.arrow": folder / "paraphrases.arrow",
        "exclusions.arrow": root / "store" / "exclusions.arrow",
    }
    files |= {kind: folder / manifest[kind] for kind in ("index", "queries", "set_aside", "sources")}
    member = root / "bundle" / "members" / ("0" * 16)
    files |= {name: member / name for name in ("trial.json", "model.safetensors", "tokenizer.json")}
    files |= {name: root / "checkpoint" / name for name in ("best.safetensors", "optimizer.safetensors")}
    files |= {"progress.json": root / "checkpoint" / "progress.json", "modules.json": root / "text" / "modules.json"}
    files |= {name: root / "pool" / "validation" / name for name in ("scores.npy", "relevance.npy", "groups.npy")}
    alone = (
        "validation.arrow", "dcase2023.zip", "dcase2025.zip", "authors.yaml", "recordings.7z", "recordings.zip",
        "published.pt",
    )  # fmt: skip
    return files | {name: root / name for name in alone}


def make_readers(root, models):
    """A function for each kind of file, which reads it as the commands do; its argument is a folder for output."""
    from data.sources.download import extract_archive
    from ensemble.challenge.metadata import read_authors
    from trainables.encoders.published import load_checkpoint

    store = partial(read_store, root / "store")
    return {
        "ensemble.json": lambda out: read_ensemble_file(root, out),
        "index.arrow": lambda out: read_index(root, out, models),
        "files.json": lambda out: read_index(root, out, models),
        "validation.arrow": lambda out: read_embeddings_file(root),
        "dcase2023.zip": lambda out: read_submission(root / "dcase2023.zip", "dcase2023"),
        "dcase2025.zip": lambda out: read_submission(root / "dcase2025.zip", "dcase2025"),
        "authors.yaml": lambda out: read_authors(root / "authors.yaml"),
        "recordings.7z": lambda out: extract_archive(root / "recordings.7z", out / "below" / "extracted"),
        "recordings.zip": lambda out: read_recordings(root / "recordings.zip"),
        "published.pt": lambda out: load_checkpoint(make_small_network(), root / "published.pt"),
        "modules.json": lambda out: read_model_folder(root / "text"),
    } | dict.fromkeys(
        ("trial.json", "model.safetensors", "tokenizer.json"), lambda out: read_model(root)
    ) | dict.fromkeys(
        ("best.safetensors", "optimizer.safetensors", "progress.json"),
        lambda out: read_checkpoint(root / "checkpoint"),
    ) | dict.fromkeys(
        ("scores.npy", "relevance.npy", "groups.npy"), lambda out: read_scores(root / "pool")
    ) | dict.fromkeys(
        ("manifest.json", "index", "queries", "set_aside", "sources", "clips", "summary", "paraphrases.arrow",
         "exclusions.arrow"),
        lambda out: store(),
    )  # fmt: skip


def read_ensemble_file(root, out):
    from ensemble.export import export_ensemble
    from sweeps.planning.retraining import plan_retrainings
    from trainables.records.ensemble_file import read_ensemble
    from trainables.records.run_storage import RunStorage

    path = root / "bundle" / "ensemble.json"
    export_ensemble(path, out / "below" / "exported", RunStorage.of(out / "runs"))
    plan_retrainings(read_ensemble(path), path, "pretraining")


def read_index(root, out, models):
    from ensemble.serving import audio_index

    shutil.copytree(root / "index", out / "index")
    index = audio_index.open_index(out / "index", models)
    audio_index.search_index(models, index, ["a dog barks"], 5)
    audio_index.update_index(out / "index", root / "sounds", models)


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


WORDS = (
    b"null", b"-1", b"1e999", b"NaN", b"true", b"{}", b"[]", b'""', b'"../../../../etc"', b'"/etc"', b'".."',
    b'"\\ud800"', b'"\\u0000"', b"9" * 5_000, b"[" * 100_000, b"9223372036854775808", b'"x"',
    b"18446744073709551616", b"0.5", b"1",
)  # fmt: skip
NUMBERS = [
    value.to_bytes(width, "little", signed=True) for width in (4, 8) for value in (0, -1, 1, 255, 400, 2**31 - 1)
]
NUMBERS += [(2**63 - 1).to_bytes(8, "little"), (2**40).to_bytes(8, "little")]


HEADERS = dict.fromkeys(("model.safetensors", "best.safetensors", "optimizer.safetensors"), (0, 8))
HEADERS |= dict.fromkeys(("scores.npy", "relevance.npy", "groups.npy"), (8, 2))
"""Where files have the length of a header of text that follows it, and the number of bytes of that length."""


def mutated(contents, name, number):
    """The contents with one to four random edits; those of a zip are edits of the zip, or of a file in it, and those of
    a file with a header of text are edits of the file, or one of its header.
    """
    rng = random.Random(f"{name} {number}")
    if name.endswith((".zip", ".pt")) and rng.randrange(3):
        return mutated_zip(contents, rng)
    if name in HEADERS and rng.randrange(2):
        return mutated_header(contents, rng, *HEADERS[name])
    edit = mutated_text if name.endswith((".json", ".yaml")) or name == "summary" else mutated_bytes
    for _ in range(rng.choice((1, 1, 2, 4))):
        contents = edit(contents, rng)
    return with_checksums(contents) if name.endswith(".7z") and rng.randrange(2) else contents


def with_checksums(archive):
    """A 7z archive with the checksums of its two headers corrected, without which no further byte of them is read."""
    start, size = int.from_bytes(archive[12:20], "little"), int.from_bytes(archive[20:28], "little")
    header_sum = zlib.crc32(archive[32 + start : 32 + start + size]).to_bytes(4, "little")
    start_header = archive[12:28] + header_sum
    return archive[:8] + zlib.crc32(start_header).to_bytes(4, "little") + start_header + archive[32:]


def mutated_zip(contents, rng):
    """A zip with a file in it edited, by rows and cells or by bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(contents)) as before, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as after:
        chosen = rng.choice(before.namelist())
        for name in before.namelist():
            edit = rng.choice((mutated_text, mutated_bytes)) if name == chosen else lambda data, _: data
            after.writestr(name, edit(before.read(name), rng))
    return out.getvalue()


def mutated_header(contents, rng, position, width):
    """A file with its header of text edited, and the length of the header corrected."""
    begin = position + width
    end = begin + int.from_bytes(contents[position:begin], "little")
    header = mutated_text(contents[begin:end], rng)
    length = min(len(header), 2 ** (8 * width) - 1)
    return contents[:position] + length.to_bytes(width, "little") + header + contents[end:]


def mutated_text(contents, rng):
    """A value, a key or a part of a text replaced by another one, by nothing, or by what is seldom there."""
    if not rng.randrange(4):
        return mutated_bytes(contents, rng)
    parts = re.split(rb'("[^"]*"|[-\w.]+|[\[\]{},:\n])', contents)
    chosen, other = rng.randrange(len(parts)), rng.randrange(len(parts))
    parts[chosen] = rng.choice((b"", parts[other], parts[chosen] * 2, *rng.sample(WORDS, 5)))
    return b"".join(parts)


def mutated_bytes(contents, rng):
    """Bits flipped, numbers overwritten, and parts taken away, doubled or exchanged."""
    data = bytearray(contents)
    if not data:
        return b"x"
    start, other, width = rng.randrange(len(data)), rng.randrange(len(data)), rng.choice((1, 4, 8, 64))
    match rng.randrange(8):
        case 0 | 1:
            data[start] ^= 1 << rng.randrange(8)
        case 2 | 3:
            value = rng.choice(NUMBERS)
            start -= start % 4
            data[start : start + len(value)] = value
        case 4:
            del data[start:]
        case 5:
            del data[start : start + width]
        case 6:
            data[start:start] = rng.randbytes(width)
        case 7:
            data[start : start + width], data[other : other + width] = (
                data[other : other + width],
                data[start : start + width],
            )
    return bytes(data)


def snapshot(folder):
    """Every file below a folder, with its size and time, except in the folder for output."""
    files = {}
    for path, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if Path(path, name) != folder / "out"]
        for name in (*names, *folders):
            status = Path(path, name).lstat()
            files[path, name] = (status.st_size, status.st_mtime_ns) if name in names else None
    return files


def flip_every_byte(path):
    """Read the vectors of an index with each byte inverted, one at a time; return what went wrong."""
    from data.errors import UserError
    from trainables.records.embeddings import read_embeddings

    contents, failures = path.read_bytes(), []
    for index in range(len(contents)):
        sys.stderr.write(f"{path.name}, byte {index}\n")
        path.unlink()
        path.write_bytes(contents[:index] + bytes([contents[index] ^ 0xFF]) + contents[index + 1 :])
        try:
            found = read_embeddings(path)
            assert len(found.clip_ids) == len(found.audio_AD)
        except UserError:
            pass
        except BaseException:
            failures.append(f"{path.name}, byte {index}\n{traceback.format_exc()[-1_500:]}")
    return failures


def fuzz(folder, count, *kinds):
    """Read `count` mutations of each kind of file; print how many were read and refused. What goes wrong is printed at
    the end, and the exit status is then 1.
    """
    import warnings

    import torch

    from data.errors import UserError

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    root, home = folder / "a" / "b" / "whole", folder / "home"
    root.mkdir(parents=True)
    home.mkdir()
    os.environ.update(HOME=str(home), TMPDIR=str(folder / "out"), XDG_CACHE_HOME=str(home))
    models = build(root)
    files, readers = list_files(root), make_readers(root, models)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + EXTRA_BYTES, resource.RLIM_INFINITY))
    failures = []
    for kind, path in files.items():
        if kinds and kind not in kinds:
            continue
        contents, counts = path.read_bytes(), [0, 0]
        for number in range(-1, int(count)):
            sys.stderr.write(f"{kind}, mutation {number}\n")
            data = contents if number < 0 else mutated(contents, kind, number)
            path.unlink()  # the old file may still be mapped
            path.write_bytes(data)
            shutil.rmtree(folder / "out", ignore_errors=True)
            (folder / "out").mkdir()
            before = snapshot(folder)
            try:
                readers[kind](folder / "out")
                counts[0] += number >= 0
            except UserError as error:
                counts[1] += 1
                if number < 0:
                    failures.append(f"{kind} as it is: {error}")
            except BaseException:
                failures.append(f"{kind}, mutation {number}: {data[:300]!r}\n{traceback.format_exc()[-1_500:]}")
                counts[1] += 1
            if snapshot(folder) != before:
                failures.append(f"{kind}, mutation {number}: something was written beside the output")
        path.write_bytes(contents)
        sys.stdout.write(f"{kind} {counts[0]} {counts[1]}\n")
    if not kinds:
        failures += flip_every_byte(files["index.arrow"])
    sys.stderr.write("\n".join(failures[:20]) + f"\n{len(failures)} failures\n")
    return bool(failures)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(fuzz(Path(sys.argv[1]).resolve(), *sys.argv[2:]))
