"""Write the tables of measured results into README.md and docs/ from the files in docs/results.

    python docs/write_results.py

A table stands between `<!-- results: NAME -->` and `<!-- end of results -->`. The files in docs/results are written by
the scripts beside them.
"""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs/results"
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def pages() -> list[Path]:
    """Return the pages that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def with_results(text: str) -> str:
    """Return a page with its tables of results written anew."""
    return BLOCK.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}{match[3]}", text)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def percent(estimate: dict[str, Any], with_interval: bool = True) -> str:
    """Return a metric in percent, with its 95 % interval."""
    value, low, high = (f"{round(100 * number, 1) + 0:.1f}" for number in (estimate["value"], *estimate["interval"]))
    return value + f" ({low} to {high})" * with_interval  # adding 0 turns -0.0 into 0.0


def read(name: str) -> Any:
    """Return the contents of a JSON file of results."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def demo() -> str:
    """Return the demo's metrics on five synthetic corpora."""
    headings = ["seed", "best pretraining", "mean fine-tuning", "best single", "ensemble", "single, test",
                "ensemble, test", "gain on test"]  # fmt: skip
    return table(headings, list(demo_rows()))


def demo_rows() -> Iterator[list[str]]:
    """Yield a row for each corpus of the demo."""
    for path in sorted((RESULTS / "demo").glob("*.json")):
        ensemble = read(f"demo/{path.name}")
        with path.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
            trials = [row for row in csv.DictReader(file) if row["no."]]
        scores = {stage: [float(row["mAP@10"]) for row in trials if row["fine-tuned"] == stage] for stage in ("", "x")}
        validation, test = (ensemble[split]["systems"] for split in ("validation", "test"))
        yield [
            path.stem,
            f"{max(scores['']):.1f}",
            f"{sum(scores['x']) / len(scores['x']):.1f}",
            percent(validation["best_single"]["map10"], with_interval=False),
            percent(validation["ensemble"]["map10"], with_interval=False),
            percent(test["best_single"]["map10"], with_interval=False),
            percent(test["ensemble"]["map10"], with_interval=False),
            percent(test["difference"]["map10"]),
        ]


def recordings() -> str:
    """Return the metrics of every selection method on real recordings."""
    ensemble = read("recordings.json")
    return table(["method", "members", "validation", "nested cross-validation", "test"], list(method_rows(ensemble)))


def method_rows(ensemble: dict[str, Any]) -> Iterator[list[str]]:
    """Yield a row for each selection method of an ensemble.json written with --compare."""
    for method in ensemble["methods"]:
        cells = [method["validation"]["map10"], method["nested"], method["test"]["map10"]]
        yield [method["name"], str(len(method["members"])), *map(percent, cells)]


def paper_hours() -> str:
    """Return the estimated GPU hours of the trained rows of the paper's Table 2."""
    rows = []
    for row in read("paper_hours.json")["rows"]:
        hours = [str(row["hours"].get(stage, "")) for stage in ("pretraining", "fine-tuning")]
        rows.append([*(name.removeprefix("huggingface:") for name in row["encoders"]),
                     "yes" if row["paraphrases"] else "no", *hours, "not run"])  # fmt: skip
    headings = ["audio", "text", "paraphrases", "pretraining, hours", "fine-tuning, hours", "mAP@10 obtained"]
    return table(headings, rows)


def students() -> str:
    """Return the metrics of students, and their difference from the same training without teachers."""
    rows = []
    for row in read("comparison.json")["students"]:
        settings = [str(row.get(name, "none")) for name in ("teachers", "temperature", "hard_share")]
        rows.append([*settings, *comparison_cells(row)])
    return table(["teachers", "temperature", "hard share", *COMPARISON_HEADINGS], rows)


def ensembles() -> str:
    """Return the metrics of single models and ensembles, their costs, and their difference from all teachers."""
    rows = []
    for row in read("comparison.json")["ensembles"]:
        costs = [str(row["members"]), f"{row['parameters'] / 1e6:.2f}", f"{row['latency_ms']:.0f}"]
        rows.append([row["name"], *costs, *comparison_cells(row)])
    return table(["system", "models", "million parameters", "ms per query", *COMPARISON_HEADINGS], rows)


def hubness() -> str:
    """Return the metrics and the skewness with and without query-bank normalisation."""
    rows = []
    for row in read("comparison.json")["hubness"]:
        settings = [row["name"], "none" if row["temperature"] is None else f"{row['temperature']:g}"]
        skewness = [f"{row['skewness'][split]:.2f}" for split in SPLITS]
        rows.append([*settings, *skewness, *comparison_cells(row)])
    skewness_headings = [f"skewness, {split}" for split in SPLITS]
    return table(["system", "temperature of normalisation", *skewness_headings, *COMPARISON_HEADINGS], rows)


def temperatures() -> str:
    """Return the metrics of each way to treat the temperature of the loss."""
    rows = [[row["name"], *comparison_cells(row)] for row in read("comparison.json")["temperatures"]]
    return table(["temperature", *COMPARISON_HEADINGS], rows)


def comparison_cells(row: dict[str, Any]) -> list[str]:
    """Return the cells under COMPARISON_HEADINGS of a row of comparison.json."""
    difference = [percent(row["difference"][split]) if "difference" in row else "" for split in SPLITS]
    return [str(row["seeds"]), *(percent(row[split]) for split in SPLITS), *difference]


def soups() -> str:
    """Return the metrics of soups, of the best of their parts, and of ensembles of the same parts."""
    rows = []
    for soup in read("comparison.json")["soups"]:
        kept = f"{len(soup['kept'])} of {len(soup['parts'])}"
        for number, (system, label) in enumerate(SOUP_SYSTEMS.items()):
            cells = [soup["name"], kept] if number == 0 else ["", ""]
            rows.append([*cells, label, *(percent(soup[split][system]) for split in SPLITS)])
    return table(["parts from", "kept by the greedy soup", "system", *SPLITS], rows)


SPLITS = ("validation", "test")
COMPARISON_HEADINGS = ("seeds", *SPLITS, *(f"difference, {split}" for split in SPLITS))
SOUP_SYSTEMS = {
    "best_part": "best part",
    "greedy": "greedy soup",
    "kept_ensemble": "ensemble of the kept parts",
    "uniform": "uniform soup",
    "ensemble": "ensemble of all parts",
    "greedy_minus_best_part": "greedy soup minus best part",
    "greedy_minus_kept_ensemble": "greedy soup minus ensemble of the kept parts",
    "uniform_minus_ensemble": "uniform soup minus ensemble of all parts",
}
"""Labels of the systems and differences in the soups of comparison.json."""

TABLES = {
    "demo": demo,
    "recordings": recordings,
    "paper_hours": paper_hours,
    "students": students,
    "ensembles": ensembles,
    "soups": soups,
    "hubness": hubness,
    "temperatures": temperatures,
}


def main() -> None:
    """Write all tables."""
    for page in pages():
        page.write_text(with_results(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
