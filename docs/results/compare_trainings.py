"""Compare the trainings of `comparison_spaces.py` and write comparison.json.

    python docs/results/compare_trainings.py RUNS

RUNS is the run storage of the sweeps that `measure_comparison.sh` runs. Metrics are mAP@10. Intervals are 95 %
percentile bootstrap intervals over groups of queries, and over seeds where a row has several: in each draw, groups and
seeds are drawn with replacement, the groups once for all systems and the seeds for each system on its own.

Shapes: S seeds, Q queries, G groups of queries, N draws.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comparison_spaces as spaces
import numpy as np
from numpy.typing import NDArray

from data.splits import Splits
from ensemble.pool.hubness import compute_skewness, count_occurrences
from ensemble.pool.query_bank import TEMPERATURES, normalise_with
from ensemble.selection.costs import count_parameters, measure_latency_ms
from trainables.records.embeddings import BANK_FILE, TEST_FILE, VALIDATION_FILE, Embeddings
from trainables.records.ledger import Ledger, TrialRun
from trainables.records.mlflow_ledger import open_ledger
from trainables.records.run_storage import RunStorage
from trainables.retrieval import Relevance, Scores, build_relevance, compute_ranks, find_metric
from trainables.trial import Trial, to_json

FILES = {"validation": VALIDATION_FILE, "test": TEST_FILE}
DRAWS = 2000
LEVELS = (0.025, 0.975)


@dataclass(frozen=True)
class System:
    """A model or an ensemble, trained with several seeds: AP@10 of each query by split, float64 [S, Q]."""

    per_query: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Runs:
    """Runs of a ledger by their trial in JSON, and the relevance of each split."""

    ledger: Ledger
    storage: RunStorage
    run_of_config: Mapping[str, TrialRun]
    relevance: Mapping[str, Relevance]

    def find(self, trial: Trial) -> TrialRun:
        """Return the finished run of a trial. Raises KeyError if there is none."""
        return self.run_of_config[json.dumps(to_json(trial), sort_keys=True)]

    def load(self, trial: Trial, split: str) -> Embeddings:
        """Return a trial's embeddings of a split, 'validation' or 'test'."""
        return self.ledger.load_embeddings(self.find(trial), FILES[split])

    def evaluate(self, scores: Scores, split: str) -> NDArray[np.float64]:
        """Return AP@10 of each query of a split, float64 [Q]."""
        relevant = self.relevance[split]
        return find_metric("map10")(compute_ranks(scores, relevant), relevant)

    def score(self, members: Sequence[Trial], split: str, temperature: float | None = None) -> Scores:
        """Return the mean of the members' scores on a split, normalised by each member's query bank at `temperature`
        unless it is None.
        """
        total: Any = 0.0
        for trial in members:
            embeddings = self.load(trial, split)
            if temperature is not None:
                bank = self.ledger.load_embeddings(self.find(trial), BANK_FILE)
                embeddings = normalise_with(embeddings, bank, "inverted-softmax", temperature)
            total = total + embeddings.compute_scores()
        scores: Scores = total / len(members)
        return scores

    def measure(self, ensembles: Sequence[Sequence[Trial]], temperature: float | None = None) -> System:
        """Return the system with one ensemble per seed."""
        return System(
            {
                split: np.stack(
                    [self.evaluate(self.score(members, split, temperature), split) for members in ensembles]
                )
                for split in FILES
            }
        )

    def compute_mean_skewness(
        self, ensembles: Sequence[Sequence[Trial]], split: str, temperature: float | None
    ) -> float:
        """Return the mean over ensembles of the skewness of the k-occurrence."""
        scores = (self.score(members, split, temperature) for members in ensembles)
        return float(np.mean([compute_skewness(count_occurrences(matrix)) for matrix in scores]))


def read_runs(folder: Path) -> Runs:
    """Return the finished runs in a run storage. All trials must have the same validation and test splits."""
    storage = RunStorage.of(folder)
    ledger = open_ledger(storage)
    finished = [run for run in ledger.iter_trials() if run.status == "FINISHED"]
    run_of_config = {json.dumps(ledger.load_config(run), sort_keys=True): run for run in finished}
    embeddings = {split: ledger.load_embeddings(finished[0], file) for split, file in FILES.items()}
    relevance = {split: build_relevance(item.relevant_clip_ids, item.clip_ids) for split, item in embeddings.items()}
    return Runs(ledger, storage, run_of_config, relevance)


def draw_means(system: System, split: str, relevant: Relevance, seed_of_draws: int) -> NDArray[np.float64]:
    """Return the mean over queries and seeds in each bootstrap draw [N]. Groups are the same for every system."""
    values_SQ = system.per_query[split]
    sizes_G = np.bincount(relevant.group_Q)
    sums_SG = np.stack([np.bincount(relevant.group_Q, weights=values_Q) for values_Q in values_SQ])
    groups_NG = np.random.default_rng(0).integers(len(sizes_G), size=(DRAWS, len(sizes_G)))
    means_SN = sums_SG[:, groups_NG].sum(axis=2) / sizes_G[groups_NG].sum(axis=1)
    seeds_NS = np.random.default_rng([1, seed_of_draws]).integers(len(values_SQ), size=(DRAWS, len(values_SQ)))
    means_N: NDArray[np.float64] = means_SN[seeds_NS, np.arange(DRAWS)[:, None]].mean(axis=1)
    return means_N


def estimate(runs: Runs, system: System, other: System | None = None) -> dict[str, Any]:
    """Return a system's mean on each split with its interval or, with another system, the difference from its mean."""
    result = {}
    for split, relevant in runs.relevance.items():
        value = system.per_query[split].mean() - (other.per_query[split].mean() if other else 0.0)
        draws_N = draw_means(system, split, relevant, 0) - (draw_means(other, split, relevant, 1) if other else 0.0)
        result[split] = {"value": float(value), "interval": [float(level) for level in np.quantile(draws_N, LEVELS)]}
    return result


def make_row(runs: Runs, name: str, system: System, other: System | None = None, **settings: object) -> dict[str, Any]:
    """Return a row of the comparison: a system, and its difference from another one."""
    row = {"name": name, **settings, "seeds": len(system.per_query["validation"]), **estimate(runs, system)}
    return row | ({"difference": estimate(runs, system, other)} if other else {})


def compare_students(runs: Runs, splits: Splits) -> list[dict[str, Any]]:
    """Return the rows of distillation: the trials without teachers, then the students of each condition."""
    control = runs.measure([[trial] for trial in spaces.controls(splits, "float32")])
    rows = [make_row(runs, "without teachers", control)]
    for (teachers, temperature, share), trials in spaces.iter_conditions(splits, "float32"):
        system = runs.measure([[trial] for trial in trials])
        settings = {"teachers": teachers, "temperature": temperature, "hard_share": share}
        rows.append(make_row(runs, "student", system, control, **settings))
    return rows


def compare_ensembles(runs: Runs, splits: Splits) -> list[dict[str, Any]]:
    """Return the rows of single models and ensembles, with their cost at search time as shares of one model's."""
    teachers, pairs = spaces.first_stage(splits, "float32"), spaces.students_of_pairs(splits, "float32")
    plain = spaces.controls(splits, "float32")
    students = dict(spaces.iter_conditions(splits, "float32"))[spaces.CHOSEN]
    rows = {
        "best teacher": [[trial for trial in teachers if spaces.has_pair(trial)]],
        "without teachers": [[trial] for trial in plain],
        "student": [[trial] for trial in students],
        "ensemble of all teachers": [teachers],
        "ensemble of a student of each pair": [pairs],
        "ensemble of the seeds without teachers": [plain],
        "ensemble of the seeds of the student": [students],
    }
    systems = {name: runs.measure(ensembles) for name, ensembles in rows.items()}
    reference = systems["ensemble of all teachers"]
    measured = []
    for name, ensembles in rows.items():
        other = None if systems[name] is reference else reference
        costs = {"parameters": sum_costs(runs, ensembles[0], "parameters"),
                 "latency_ms": sum_costs(runs, ensembles[0], "latency")}  # fmt: skip
        measured.append(make_row(runs, name, systems[name], other, members=len(ensembles[0]), **costs))
    return measured


def sum_costs(runs: Runs, members: Iterable[Trial], kind: str) -> float:
    """Return the number of parameters of all members or, for the kind 'latency', their time per query in ms."""
    measure = count_parameters if kind == "parameters" else measure_latency_ms
    return sum(measure(runs.storage.folder / "models" / runs.find(trial).signature) for trial in members)


def compare_hubness(runs: Runs, splits: Splits) -> list[dict[str, Any]]:
    """Return the rows of query-bank normalisation: each system without it, and with the temperature that is best on
    validation.
    """
    plain = spaces.controls(splits, "float32")
    rows = []
    ensembles_of = {
        "single": [[trial] for trial in plain],
        "ensemble of all teachers": [spaces.first_stage(splits, "float32")],
    }
    for name, ensembles in ensembles_of.items():
        without = runs.measure(ensembles)
        normalised = {temperature: runs.measure(ensembles, temperature) for temperature in TEMPERATURES}
        best = max(normalised, key=lambda temperature: normalised[temperature].per_query["validation"].mean())
        for temperature, system, other in ((None, without, None), (best, normalised[best], without)):
            skewness = {split: runs.compute_mean_skewness(ensembles, split, temperature) for split in FILES}
            rows.append(make_row(runs, name, system, other, temperature=temperature, skewness=skewness))
    return rows


def compare_temperatures(runs: Runs, splits: Splits) -> list[dict[str, Any]]:
    """Return the rows of the ways to treat the temperature of the loss."""
    systems = {
        name: runs.measure([[trial] for trial in trials])
        for name, trials in spaces.group_by_form(splits, "float32").items()
    }
    first, *others = systems
    rows = [make_row(runs, first, systems[first])]
    return [*rows, *(make_row(runs, name, systems[name], systems[first]) for name in others)]


def read_soups(folder: Path) -> list[dict[str, Any]]:
    """Return the comparisons of soups in the files ensemble.json of the selections called 'soups-*'."""
    paths = sorted((folder / "ensembles").glob("soups-*/ensemble.json"))
    return [
        {"name": path.parent.name.removeprefix("soups-"), **soup}
        for path in paths
        for soup in json.loads(path.read_text(encoding="utf-8"))["soups"]
    ]


def main(folder: Path) -> None:
    """Compare the trials in a run storage and write comparison.json."""
    train = "clotho/development"
    splits = Splits(train=train, validation="clotho/validation", test="clotho/evaluation", pretrain=(train,))
    runs = read_runs(folder)
    result = {
        "students": compare_students(runs, splits),
        "ensembles": compare_ensembles(runs, splits),
        "soups": read_soups(folder),
        "hubness": compare_hubness(runs, splits),
        "temperatures": compare_temperatures(runs, splits),
    }
    Path(__file__).with_name("comparison.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
