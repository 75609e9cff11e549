"""Selection at Clotho's size: against the straightforward loop, all subsets, the bootstrap, and how it grows.

python tests/benchmarks/selecting.py [--candidates 100] [--rounds 3] [--growth]

The straightforward loop adds a candidate's matrix to the sum, takes torch's topk, and averages the precision.
Selections are compared first: with those of the same loop in float64. A fresh process has its compiled code on disk, as
after the first use on a machine.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measure import machine, say, told

from ensemble.pool.score_matrices import ScoreMatrices, from_arrays
from ensemble.selection import cross_validation, exhaustive, greedy
from ensemble.selection.pruned_pool import PrunedPool, prune
from trainables import bootstrap, retrieval
from trainables.retrieval import Relevance

ROOT = Path(__file__).parents[2]
QUERIES, CLIPS, CANDIDATES, STEPS = 5225, 1045, 100, 20


def relevance_of(queries: int, clips: int) -> Relevance:
    """As many captions for each clip as go round."""
    clip_Q = np.arange(queries) * clips // queries
    return Relevance(np.arange(queries), clip_Q, clip_Q)


def candidate(number: int, queries: int, clips: int) -> np.ndarray:
    """Scores of a made-up dual encoder: what queries and clips share, and what this one makes of it.

    Alone they reach an mAP@10 of 0.31 to 0.37, as the systems of the task do.
    """
    shared, own = np.random.default_rng(0), np.random.default_rng(1 + number)
    clips_AD = shared.normal(size=(clips, 64)).astype(np.float32)
    text_QD = clips_AD[relevance_of(queries, clips).clip_P] + 2.7 * shared.normal(size=(queries, 64)).astype(np.float32)
    noise = own.uniform(0.35, 0.45)
    text_QD = text_QD + 1.4 * noise * own.normal(size=text_QD.shape).astype(np.float32)
    clips_AD = clips_AD + noise * own.normal(size=clips_AD.shape).astype(np.float32)
    text_QD /= np.linalg.norm(text_QD, axis=1, keepdims=True)
    clips_AD /= np.linalg.norm(clips_AD, axis=1, keepdims=True)
    return text_QD @ clips_AD.T


def pool_of(number: int, queries: int, clips: int, folder: Path | None = None) -> ScoreMatrices:
    """A pool in memory, or memory-mapped from files."""
    arrays = []
    for place in range(number):
        array = candidate(place, queries, clips)
        if folder:
            path = folder / f"{place:04d}.npy"
            if not path.exists():
                np.save(path, array)
            array = np.load(path, mmap_mode="r")
        arrays.append(array)
    names = [f"{place:04d}" for place in range(number)]
    return from_arrays(names, "validation", "", relevance_of(queries, clips), arrays)


def precision(scores_QA: torch.Tensor, clip_Q: torch.Tensor, rank_worth: torch.Tensor) -> float:
    """mAP@10 by torch.topk."""
    hits = scores_QA.topk(10, dim=1).indices == clip_Q[:, None]
    return float((hits * rank_worth).sum(dim=1).mean())


def baseline(pool: ScoreMatrices, steps: int, dtype: torch.dtype) -> tuple[list[int], float]:
    """The straightforward loop: its selection, and the seconds of an evaluation."""
    scores = [torch.from_numpy(np.array(array)) for array in pool.arrays]
    clip_Q, worth = torch.from_numpy(pool.relevance.clip_P), 1 / torch.arange(1, 11, dtype=torch.float64)
    total, history = torch.zeros(scores[0].shape, dtype=dtype), []
    began = time.perf_counter()
    for size in range(1, steps + 1):
        values = [precision((total + one) / size, clip_Q, worth) for one in scores]
        history.append(int(np.argmax(values)))
        total += scores[history[-1]]
    return history, (time.perf_counter() - began) / (steps * len(scores))


def history_of(selection: greedy.Selection) -> list[int]:
    """The candidates in the order in which they joined."""
    return [step.added for step in selection.trajectory]


def timed(work, rounds: int):
    """The median of the seconds that some work takes, and what it gives."""
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        found = work()
        took.append(time.perf_counter() - began)
    return statistics.median(took), found


def anonymous_mb() -> float:
    """Memory that isn't a file's."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1024


def fresh(folder: Path, steps: int) -> dict[str, float]:
    """What a process of its own takes to select from files, its start included."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--fresh", str(folder), "--steps", str(steps)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return json.loads(done.stdout) | {"whole_s": time.perf_counter() - began}


def select_from(folder: Path, steps: int) -> None:
    """In a fresh process: the numbers of `fresh`, as JSON."""
    arrays = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))]
    names = [f"{place:04d}" for place in range(len(arrays))]
    before = anonymous_mb()
    began = time.perf_counter()
    pool = from_arrays(names, "validation", "", relevance_of(*arrays[0].shape), arrays)
    live = prune(pool, "map10")
    selection = greedy.select(live, greedy.SelectionConfig(max_size=steps))
    took = time.perf_counter() - began
    found = {"s": took, "mb": anonymous_mb() - before, "share": live.kept_share, "history": history_of(selection)}
    sys.stdout.write(json.dumps(found))


def measure_greedy(folder: Path, candidates: int, rounds: int) -> PrunedPool:
    """The figures of greedy selection."""
    pool = pool_of(candidates, QUERIES, CLIPS, folder)
    singles = [
        retrieval.compute_metrics(pool.arrays[m], pool.relevance, ["map10"])["map10"] for m in range(0, candidates, 20)
    ]
    say(
        f"{candidates} candidates x {QUERIES} queries x {CLIPS} clips; singles {min(singles):.3f} to {max(singles):.3f}"
    )
    wanted, _ = baseline(pool, STEPS, torch.float64)
    plain, evaluation_s = baseline(pool, STEPS, torch.float32)
    rules = greedy.SelectionConfig(max_size=STEPS)
    found = greedy.select(prune(pool, "map10"), rules)
    assert history_of(found) == wanted, "the selection is that of float64"
    told("steps that float32's loop takes otherwise", sum(a != b for a, b in zip(plain, wanted, strict=True)), "")
    baseline_s = evaluation_s * candidates * STEPS
    told("the straightforward loop, an evaluation", 1000 * evaluation_s, "ms")
    told("the straightforward loop, all steps", baseline_s, "s")
    both_s, _ = timed(lambda: greedy.select(prune(pool, "map10"), rules), rounds)
    compress_s, live = timed(lambda: prune(pool, "map10"), rounds)
    again_s, _ = timed(lambda: greedy.select(live, rules), rounds)
    told("compression", compress_s, "s")
    told("greedy, compression included", both_s, "s")
    told("the loop / greedy with compression", baseline_s / both_s, "", least=50)
    told("the loop / greedy on one compression", baseline_s / again_s, "", least=150)
    first = fresh(folder, STEPS)
    assert first["history"] == wanted
    told("the loop / the first selection in a fresh process", baseline_s / first["s"], "", least=10)
    told("the loop / a fresh process from its start", baseline_s / first["whole_s"], "")
    pool_mb = candidates * QUERIES * CLIPS * 4 / 2**20
    told("share of the matrices that is kept", 100 * live.kept_share, "%")
    told("memory of selecting / of the pool", first["mb"] / pool_mb, "", most=0.25)
    return live


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=CANDIDATES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--growth", action="store_true", help="also the table of growth, up to 1,000 candidates")
    parser.add_argument("--fresh", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=STEPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fresh:
        select_from(arguments.fresh, arguments.steps)
        return
    say(machine())
    with tempfile.TemporaryDirectory() as scratch:
        live = measure_greedy(Path(scratch), arguments.candidates, arguments.rounds)
    for number, most in ((16, 1.0), (20, None), (24, 90.0)):
        expected = exhaustive.estimate_seconds(live, range(number))
        took, _ = timed(lambda number=number: exhaustive.score_subsets(live, range(number)), 3 if number < 20 else 1)
        told(f"all subsets of {number} (it said {expected:.1f} s)", took, "s", **({"most": most} if most else {}))
    selection = greedy.select(live)
    took, _ = timed(lambda: intervals(live, selection), arguments.rounds)
    told("1,000 bootstrap resamples of an ensemble", took, "s", most=2.0)
    took, _ = timed(
        lambda: cross_validation.cross_validate(
            lambda seen_Q: live, greedy.SelectionConfig(), cross_validation.assign_folds(live.group_Q, 5)
        ),
        1,
    )
    told("nested cross-validation, five folds", took, "s")
    if arguments.growth:
        growth()


def intervals(live: PrunedPool, selection: greedy.Selection) -> tuple[float, float]:
    """The interval of an ensemble's metric."""
    worth_Q = live.score_ensemble(selection.counts) / live.gains.perfect_score
    relevant = Relevance(live.query_P, live.query_P, live.group_Q)
    return bootstrap.bootstrap_interval(worth_Q, relevant, draws=1000)


def growth() -> None:
    """How time and memory grow with candidates, queries and clips; the last rows are parts of 100,000 clips' work."""
    say("candidates  queries    clips    pool GB  compression s  20 steps s  kept %  kept / pool")
    sizes = [(10, 5225, 1045), (100, 5225, 1045), (300, 5225, 1045), (1000, 5225, 1045), (100, 1000, 1045),
             (100, 20000, 1045), (100, 1000, 10000), (30, 500, 100_000), (300, 50, 100_000),
             (1000, 100, 100_000)]  # fmt: skip
    for candidates, queries, clips in sizes:
        gigabytes = candidates * queries * clips * 4 / 1e9
        with tempfile.TemporaryDirectory() as scratch:
            if shutil.disk_usage(scratch).free < 1.1e9 * gigabytes:
                say(f"{candidates:10} {queries:8} {clips:8} {gigabytes:10.2f} left out: the disk has no room for it")
                continue
            pool = pool_of(candidates, queries, clips, Path(scratch))
            compress_s, live = timed(lambda pool=pool: prune(pool, "map10"), 1)
            select_s, _ = timed(lambda live=live: greedy.select(live, greedy.SelectionConfig(max_size=STEPS)), 1)
            say(
                f"{candidates:10} {queries:8} {clips:8} {gigabytes:10.2f} {compress_s:14.2f} {select_s:11.2f} "
                f"{100 * live.kept_share:7.2f} {live.num_bytes / gigabytes / 1e9:12.3f}"
            )


if __name__ == "__main__":
    main()
