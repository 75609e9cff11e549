"""Search in an index of 4,000, 40,000 and 400,000 clips: recall, latency, memory, and the time to build and to add.

python tests/benchmarks/searching.py RUNS [--sizes 4000 40000 400000] [--dimensions 8192] [--folder FOLDER]

Vectors have the spread of real ones: those of the validation clips by up to eight finished trials in RUNS, joined. A
made clip lies between a real one and one of its ten nearest, with noise of the real covariance added. A random rotation
brings them, and the real queries, to the number of dimensions of the paper's ensemble. Each index is searched in a
process of its own. Expected hits are those of exact scores by vectors in single precision.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import machine, say, told

from ensemble.index.parts import MOMENT, PASSAGE, IndexedFile, IndexedRecording
from ensemble.index.vector_search import choose_best, open_index
from ensemble.index.writer import IndexWriter
from trainables.records.mlflow_ledger import open_ledger
from trainables.records.run_storage import RunStorage

ROOT = Path(__file__).parents[2]
MEMBERS, NEIGHBOURS, NOISE_SHARE = 8, 10, 0.35
PART, ADDED, QUERIES, TOP = 20_000, 1_000, 200, 10


def read_real(runs):
    """The joined vectors of validation clips and queries by up to eight trials, float32 [A, E] and [Q, E]."""
    ledger = open_ledger(RunStorage.of(runs))
    finished = [run for run in ledger.iter_trials() if run.status == "FINISHED"][:MEMBERS]
    loaded = [ledger.load_embeddings(run, "validation.arrow") for run in finished]
    assert all(one.clip_ids == loaded[0].clip_ids and one.queries == loaded[0].queries for one in loaded)
    scale = np.float32(len(loaded) ** -0.5)
    return tuple(np.concatenate([getattr(one, name) for one in loaded], axis=1) * scale
                 for name in ("audio_AD", "text_QD"))  # fmt: skip


def make_rotation(size, dimensions):
    """A matrix [size, dimensions] with orthonormal rows."""
    rng = np.random.default_rng(7)
    return np.linalg.qr(rng.normal(size=(dimensions, size)))[0].T.astype(np.float32)


def make_clips(real_AE, number, seed):
    """Made clips near the real ones [number, E]."""
    rng = np.random.default_rng(seed)
    nearest = np.argsort(-(real_AE @ real_AE.T), axis=1)[:, 1 : NEIGHBOURS + 1]
    first = rng.integers(len(real_AE), size=number)
    second = nearest[first, rng.integers(NEIGHBOURS, size=number)]
    share = rng.random((number, 1), np.float32)
    centred = (real_AE - real_AE.mean(axis=0)) / np.sqrt(len(real_AE), dtype=np.float32)
    noise = rng.normal(size=(number, len(real_AE))).astype(np.float32) @ centred
    made = real_AE[first] + share * (real_AE[second] - real_AE[first]) + np.float32(NOISE_SHARE) * noise
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def iter_recordings(vectors_RD, first):
    one = np.array([PASSAGE | MOMENT], np.uint8)
    start_s, end_s = np.zeros(1, np.float32), np.full(1, 10, np.float32)
    for number, vector_D in enumerate(vectors_RD, start=first):
        file = IndexedFile(f"/library/{number:06d}.wav", "/library", 1, 1, (), number.to_bytes(32, "big"))
        yield IndexedRecording(file, 10.0, bytes(240), start_s, end_s, one, vector_D[None])


def build(folder, real_AE, rotation_ED, number):
    """Write an index, and return the seconds that writing and preparing took, without making the vectors."""
    dimensions, took_s = rotation_ED.shape[1], 0.0
    scale_D = np.full(dimensions, dimensions**-0.5, np.float32)
    writer = IndexWriter(folder, "0" * 16, scale_D)
    for first in range(0, number, PART):
        vectors = make_clips(real_AE, min(PART, number - first), first) @ rotation_ED
        began = time.perf_counter()
        writer.commit(iter_recordings(vectors, first), [])
        took_s += time.perf_counter() - began
    began = time.perf_counter()
    writer.prepare_search()
    return took_s + time.perf_counter() - began


def add(folder, real_AE, rotation_ED, number):
    """Add a thousand clips to an index, and return the seconds."""
    vectors = make_clips(real_AE, ADDED, number) @ rotation_ED
    began = time.perf_counter()
    writer = IndexWriter(folder, "0" * 16, np.full(rotation_ED.shape[1], rotation_ED.shape[1] ** -0.5, np.float32))
    writer.commit(iter_recordings(vectors, number), [])
    writer.prepare_search()
    return time.perf_counter() - began


def search(folder, queries_file):
    """Search an index, and print its figures as JSON: this is the process of its own."""
    began = time.perf_counter()
    index = open_index(folder)
    index.prepare()
    opened_s = time.perf_counter() - began
    queries_QD = np.load(queries_file)
    times, hits = [], []
    for query_D in queries_QD:
        began = time.perf_counter()
        ((recordings, scores),) = index.score_recordings(query_D[None], TOP)
        best, scores = choose_best((recordings, scores), TOP)
        times.append(time.perf_counter() - began)
        hits.append(best[np.argsort(-scores)][:TOP].tolist())
    # The peak of this process: ru_maxrss would include that of the process that started it.
    memory = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 2**20
    say(json.dumps({"opened_s": opened_s, "times": times, "hits": hits, "memory_gib": memory,
                    "rule": index.describe_search()}))  # fmt: skip


def find_exactly(folder, queries_QD):
    """The best recordings by exact scores, in blocks."""
    index = open_index(folder)
    best, numbers = np.zeros((len(queries_QD), 0), np.float32), np.zeros((len(queries_QD), 0), np.int64)
    for first in range(0, index.manifest.num_rows, PART):
        rows = np.arange(first, min(first + PART, index.manifest.num_rows))
        scores = np.concatenate([best, queries_QD @ index.load_rows(rows).T], axis=1)
        candidates = np.concatenate(
            [numbers, np.broadcast_to(index.recording_R[rows], (len(queries_QD), len(rows)))], 1
        )
        order = np.argsort(-scores, axis=1)[:, :TOP]
        best, numbers = np.take_along_axis(scores, order, 1), np.take_along_axis(candidates, order, 1)
    return numbers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4_000, 40_000, 400_000])
    parser.add_argument("--dimensions", type=int, default=8192)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--search", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.search:
        return search(*arguments.search)
    say(machine())
    real_AE, real_QE = read_real(arguments.runs)
    rotation_ED = make_rotation(real_AE.shape[1], arguments.dimensions)
    chosen = np.random.default_rng(0).choice(len(real_QE), QUERIES, replace=False)
    queries_QD = real_QE[chosen] @ rotation_ED
    say(
        f"{len(real_AE)} real clips of {real_AE.shape[1]} numbers, {QUERIES} queries, {arguments.dimensions} dimensions"
    )
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            measure(Path(folder), real_AE, rotation_ED, queries_QD, size)
    return None


def measure(folder, real_AE, rotation_ED, queries_QD, size):
    """Print the figures of an index of one size."""
    index = folder / "index"
    index.mkdir()
    built_s = build(index, real_AE, rotation_ED, size)
    np.save(folder / "queries.npy", queries_QD)
    words = [sys.executable, __file__, ".", "--search", str(index), str(folder / "queries.npy")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    expected = find_exactly(index, queries_QD)
    recall = np.mean([len(set(hits) & set(best)) / TOP for hits, best in zip(found["hits"], expected, strict=True)])
    ms = 1000 * np.array(found["times"][QUERIES // 10 :])
    say(f"\n{size:,} clips: {found['rule']}")
    told("recall of the exact top 10", recall, "", least=0.99)
    told("median time of a query", float(np.median(ms)), "ms", most=100)
    told("99th percentile", float(np.quantile(ms, 0.99)), "ms", most=100)
    told("opening", found["opened_s"], "s", most=1)
    told("memory of the process, with mapped pages", found["memory_gib"], "GiB", most=4)
    told("building, without embedding", built_s, "s")
    told("adding 1,000 clips, without embedding", add(index, real_AE, rotation_ED, size), "s")


if __name__ == "__main__":
    main()
