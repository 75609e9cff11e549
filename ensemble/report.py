"""The paper's Table 2 and Figure 2 for a sweep of one's own: what its trials and ensembles come to.

python ensemble/report.py --runs DIR [--sweep NAME ...] [--out DIR] [--no-test]

Writes report.md, report.csv, report.tex (booktabs) and report.html, which needs nothing else: with learning curves,
what each factor of the grid does, costs, and what the newest ensemble retrieves, to be listened to. Figures are of the
test split: one more look at it, which MLflow counts; --no-test shows those of validation.
"""

if __name__ == "__main__":
    # As in select.py: this file's folder holds a module that is named as one of the standard library's.
    import os
    import sys
    from pathlib import Path

    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(entry for entry in sys.path if Path(entry).resolve() != here)]
    os.environ["PYTHONSAFEPATH"] = "1"

import argparse
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from rich.console import Console
from rich.table import Table

from data.errors import UserError, run_command
from data.shards import appearing_whole, read_json
from ensemble import paper, pool, survey
from ensemble.events import log_event
from ensemble.leaf import Leaf, write_leaf
from ensemble.pool import Which
from ensemble.retrieved import retrieved
from ensemble.survey import Row
from trainables import ledger as ledgers
from trainables.ledger import Ledger, Sweep, open_ledger
from trainables.runs import Runs

TITLES = {"map10": "mAP@10", "r1": "R@1", "r5": "R@5", "r10": "R@10"}
FIGURES = tuple(heading for title in TITLES.values() for heading in (title, f"{title}, 95 %", f"{title}, paper"))
HEADINGS = ("no.", "audio", "segment", "overlap", "text", "fine-tuned", "GPT", "seed", *FIGURES)
"""Of the table: a row a trial, then a row an ensemble."""

Line = list[str]


@dataclass(frozen=True)
class Chosen:
    """An ensemble of the ledger: its members' rows, and its figures."""

    ensemble: dict[str, Any]
    members: list[Row]
    figures: dict[str, Any]


def ensembles_of(ledger: Ledger, sweeps: Sequence[Sweep], rows: Sequence[Row], which: Which) -> list[Chosen]:
    """The text-to-audio ensembles that were chosen from these trials, the newest first, each once."""
    by_signature = {row.candidate.signature: row for row in rows}
    found: dict[tuple[Any, ...], Chosen] = {}
    for run in ledger.runs("ensemble"):
        if run.data.tags.get("mlflow.parentRunId") not in {sweep.run_id for sweep in sweeps}:
            continue
        try:
            ensemble = read_json(Path(ledger.client.download_artifacts(run.info.run_id, "ensemble.json")))
        except (MlflowException, OSError, UserError):
            continue
        members = {member.get("signature", ""): member["weight"] for member in ensemble["members"]}
        is_text_to_audio = ensemble.get("direction", "t2a") == "t2a"
        if is_text_to_audio and which in ensemble and members.keys() <= by_signature.keys():
            key = (ensemble["metric"], *sorted(members.items()))
            own = sorted((by_signature[signature] for signature in members), key=lambda row: row.number)
            found.setdefault(key, Chosen(ensemble, own, ensemble[which]["ensemble"]))
    return list(found.values())


def line_of(row: Row) -> Line:
    """A trial as cells of the table."""
    trial = row.trial
    return [
        str(row.number), row.key.audio, f"{trial.audio.segment_s:g} s", row.overlap, row.key.text,
        "x" if row.key.fine_tuned else "", "x" if row.key.paraphrases else "", str(trial.seed),
        *cells(row.figures, row.published),
    ]  # fmt: skip


def line_of_ensemble(one: Chosen) -> Line:
    """An ensemble as cells of the table."""
    name = f"ensemble of {', '.join(str(row.number) for row in one.members)}"
    published = paper.ENSEMBLE if sorted(map(key_of, one.members)) == sorted(map(repr, paper.ENSEMBLE_OF)) else None
    return ["", name, *[""] * 6, *cells(one.figures, published)]


def key_of(row: Row) -> str:
    """What tells a row of the paper's table from the others, as something that sorts."""
    return repr(row.key)


def cells(figures: dict[str, Any], published: paper.Figures | None) -> Line:
    """The figures, their intervals, and the paper's; in percent."""
    found = []
    for place, name in enumerate(paper.METRICS):
        if figures:
            low, high = figures[f"{name}_interval"]
            found += [f"{100 * figures[name]:.2f}", f"{100 * low:.1f} to {100 * high:.1f}"]
        else:
            found += ["", ""]
        theirs = published[place] if published else None
        found.append("" if theirs is None else f"{theirs:.2f}")
    return found


def used(lines: Sequence[Line]) -> list[int]:
    """The columns in which something stands."""
    return [place for place in range(len(HEADINGS)) if any(line[place] for line in lines)]


def as_markdown(lines: Sequence[Line]) -> str:
    """The table in Markdown."""
    columns = used(lines)

    def row(line: Sequence[str]) -> str:
        return "| " + " | ".join(line[place].replace("|", "\\|") for place in columns) + " |"

    return "\n".join([row(HEADINGS), "|" + "---|" * len(columns), *map(row, lines)]) + "\n"


def as_csv(lines: Sequence[Line]) -> str:
    """The table as CSV, with all columns."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([HEADINGS, *lines])
    return out.getvalue()


LATEX = str.maketrans({"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
                       "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"})  # fmt: skip


def as_latex(lines: Sequence[Line]) -> str:
    """The table in LaTeX, for booktabs."""
    columns = used(lines)

    def row(line: Sequence[str]) -> str:
        return " & ".join(line[place].translate(LATEX) for place in columns) + r" \\"

    body = [row(line) for line in lines]
    first_ensemble = next((place for place, line in enumerate(lines) if not line[0]), len(lines))
    body[first_ensemble:first_ensemble] = [r"\midrule"] * (0 < first_ensemble < len(lines))
    return "\n".join(
        [r"\begin{tabular}{" + "l" * len(columns) + "}", r"\toprule", row(HEADINGS), r"\midrule", *body, r"\bottomrule",
         r"\end{tabular}", ""]
    )  # fmt: skip


def show(lines: Sequence[Line], title: str, console: Console) -> None:
    """The table on the terminal: without intervals, which are in the files."""
    columns = [place for place in used(lines) if not HEADINGS[place].endswith("95 %")]
    table = Table(title=title, title_justify="left", box=None)
    for place in columns:
        table.add_column(HEADINGS[place], justify="left" if 0 < place < 5 else "right", no_wrap=place != 4)
    for line in lines:
        table.add_row(*(line[place] for place in columns))
    console.print(table, markup=False)


def event(sweeps: Sequence[Sweep], rows: Sequence[Row], split: str, fingerprint: str) -> dict[str, Any]:
    """What MLflow is told of a look at test."""
    members = [{"name": row.candidate.name, "signature": row.candidate.signature} for row in rows if row.figures]
    return {
        "metric": "map10", "method": "report", "fusion": "none", "direction": "t2a",
        "pool": " and ".join(sweep.name for sweep in sweeps), "members": members, "trajectory": [],
        "test": {"split": split, "fingerprint": fingerprint},
    }  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Everything the command does."""
    which: Which = "validation" if arguments.no_test else "test"
    runs = Runs.of(arguments.runs)
    ledger = open_ledger(runs, arguments.tracking_uri)
    sweeps = [ledger.sweep(name) for name in arguments.sweep or [None]]
    console = Console(width=max(160, Console().width), highlight=False)
    source, rows = survey.judge(ledger, survey.rows_of(ledger, pool.find_candidates(ledger, sweeps)), which)
    for row in rows:
        if row.missing:
            console.print(f"no figures of {row.number}, {row.candidate.name}: {row.missing}", markup=False)
    name = "-".join(sweep.name for sweep in sweeps)
    if source is None:
        instead = "" if arguments.no_test else "; use --no-test"
        raise UserError(f"no trial of {name} has embeddings of {which}: there are no figures to report{instead}")
    chosen = ensembles_of(ledger, sweeps, rows, which)
    lines = [*map(line_of, rows), *map(line_of_ensemble, chosen)]
    out: Path = arguments.out or runs.local_folder / "reports" / name
    answers = None
    if chosen:
        store = arguments.store or sweeps[0].description.get("store")
        answers = retrieved(ledger, rows, chosen[0].ensemble, which, store)
    title = f"{name} on {source.split}"
    leaf = Leaf(title, HEADINGS, lines, used(lines), rows, chosen[0].ensemble if chosen else None, answers)
    for suffix, text in (("md", as_markdown(lines)), ("csv", as_csv(lines)), ("tex", as_latex(lines))):
        write_text(out / f"report.{suffix}", text)
    write_leaf(out / "report.html", leaf)
    files = [out / f"report.{suffix}" for suffix in ("md", "csv", "tex", "html")]
    show(lines, f"In percent, on {source.split}", console)
    if which == "test":
        told = event(sweeps, rows, source.split, source.fingerprint)
        earlier = log_event(ledger, "evaluation", f"report of {name}", told, files, sweeps[0].run_id)
        console.print(f"Evaluations on {source.split} that came before this one: {earlier}", markup=False)
    for file in files:
        console.print(f"Wrote {file} ({file.stat().st_size / 1e6:.1f} MB)", markup=False)


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    with appearing_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="report.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ledgers.add_arguments(parser)
    parser.add_argument("--sweep", nargs="+", help="names of sweeps (default: the newest)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the report goes (default: RUNS/reports/NAME)")
    parser.add_argument("--no-test", action="store_true", help="figures of validation; test isn't looked at")
    parser.add_argument("--store", help="where the recordings are to be heard from (default: the sweep's)")
    run(parser.parse_args())


if __name__ == "__main__":
    run_command(main)
