"""Choices and evaluations as runs in MLflow, so that whoever looks at test is told how often that has happened."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainables.records.ledger import Ledger

KINDS = ("ensemble", "evaluation")
AT_A_TIME = 1000
"""Metrics that MLflow takes in one request."""


def looks_at_test(ledger: Ledger, fingerprint: str) -> int:
    """How many evaluations on this test split have been logged."""
    return sum(1 for kind in KINDS for _ in ledger.runs(kind, f"tags.test_fingerprint = '{fingerprint}'"))


def log_event(
    ledger: Ledger, kind: str, name: str, ensemble: Mapping[str, Any], files: Sequence[Path], parent: str
) -> int:
    """Log a choice ('ensemble') or an evaluation as a run; returns how many looks at its test split came before."""
    test = ensemble.get("test", {}).get("fingerprint", "")
    earlier = looks_at_test(ledger, test)
    tags = {
        "kind": kind,
        "members": ",".join(member.get("signature", member["name"]) for member in ensemble["members"]),
    }
    tags |= {"test_fingerprint": test} if test else {}
    tags |= {"mlflow.parentRunId": parent} if parent else {}
    run_id = ledger.client.create_run(ledger.experiment_id, tags=tags, run_name=name).info.run_id
    now_ms = time.time_ns() // 1_000_000
    from mlflow.entities import Metric, Param

    metrics = [Metric(key, value, now_ms, step) for key, value, step in values(ensemble)]
    params = [Param(key, str(ensemble[key])) for key in ("metric", "method", "fusion", "direction", "pool")]
    ledger.client.log_batch(run_id, params=params)
    for first in range(0, len(metrics), AT_A_TIME):
        ledger.client.log_batch(run_id, metrics=metrics[first : first + AT_A_TIME])
    for file in files:
        ledger.client.log_artifact(run_id, str(file))
    ledger.finish(run_id)
    return earlier


def values(ensemble: Mapping[str, Any]) -> Iterator[tuple[str, float, int]]:
    """What is a number about an ensemble: name, value and step."""
    metric = ensemble["metric"]
    for split in ("validation", "test"):
        yield from figures(ensemble, split)
        yield from steps(f"size_{split}", ensemble.get("sizes", {}).get(split, []), "value")
    yield from steps("trajectory", ensemble["trajectory"], metric)
    for key in ("weight", "alone", "without", "shapley"):
        yield from steps(f"member_{key}", ensemble["members"], key)
    for key in ("cost", "value"):
        yield from steps(f"front_{key}", ensemble.get("front", []), key)
    if nested := ensemble.get("nested"):
        yield "nested_ensemble", nested["ensemble"]["value"], 0
        yield "nested_best_single", nested["best_single"]["value"], 0
        yield "nested_optimism", nested["optimism"], 0
    for method in ensemble.get("methods", []):
        name = method["name"].replace(", ", "_").replace(" ", "_")
        for where, key in (("validation", metric), ("nested", "value"), ("test", metric)):
            if where in method:
                yield f"method_{name}_{where}", method[where][key], 0


def figures(ensemble: Mapping[str, Any], split: str) -> Iterator[tuple[str, float, int]]:
    """The systems' figures on a split."""
    for system in ("ensemble", "best_single", "difference"):
        for figure, value in ensemble.get(split, {}).get(system, {}).items():
            if isinstance(value, float):
                yield f"{split}_{system}_{figure}", value, 0


def steps(name: str, entries: Sequence[Mapping[str, Any]], key: str) -> Iterator[tuple[str, float, int]]:
    """One figure of each of several entries."""
    for step, entry in enumerate(entries, start=1):
        if key in entry:
            yield name, entry[key], step
