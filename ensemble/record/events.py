"""Log selections and evaluations, so that whoever looks at test is told how often that has happened."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainables.records.ledger import EventKind, Ledger

KINDS: tuple[EventKind, ...] = ("ensemble", "evaluation")
SETTINGS = ("metric", "method", "fusion", "direction", "pool")


def count_looks_at_test(ledger: Ledger, fingerprint: str) -> int:
    """Return how many selections and evaluations with figures on this test split have been logged."""
    return sum(1 for kind in KINDS for _ in ledger.events(kind, fingerprint))


def log_event(
    ledger: Ledger, kind: EventKind, name: str, ensemble: Mapping[str, Any], files: Sequence[Path], sweep_run_id: str
) -> int:
    """Log a selection or an evaluation; return how many looks at its test split came before."""
    test = ensemble.get("test", {}).get("fingerprint", "")
    earlier = count_looks_at_test(ledger, test) if test else 0
    members = ",".join(member.get("signature", member["name"]) for member in ensemble["members"])
    settings = {key: str(ensemble[key]) for key in SETTINGS}
    ledger.log_event(kind, name, members, test, sweep_run_id, settings, values(ensemble), files)
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
