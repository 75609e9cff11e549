"""Report on a sweep: the paper's Table 2 and Figure 2 for its trials and ensembles.

Writes report.md, report.csv, report.tex (booktabs) and report.html (self-contained, with learning
curves, main effects, costs and retrieved recordings to play); and seeds.csv if settings were
trained with several seeds. Unless --no-test is given, the report counts as one look at test.

Examples:
    python ensemble/report.py
    python ensemble/report.py --sweep A B --no-test --out report

Guide: docs/report.md
"""

if __name__ == "__main__" and not __package__:
    import _run_as_script  # noqa: F401

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.errors import UserError
from data.runtime.command_line import command
from data.runtime.console import PlainConsole
from data.runtime.options import Command, group, option, run_command
from data.store.files import atomic_write
from data.store.scratch import create_scratch_folder
from data.store.stored_split import open_split
from ensemble.pool import candidates
from ensemble.pool.candidates import Role
from ensemble.record.events import log_and_count
from ensemble.reporting import paper_results, trial_rows
from ensemble.reporting.ensemble_rows import EnsembleRow, build_ensemble_rows, find_soups, read_ensembles
from ensemble.reporting.report_page import ReportContent, render_page
from ensemble.reporting.retrieval_examples import PlayableClips, RetrievalExample, build_examples, load_excerpts
from ensemble.reporting.tables import Cell, ReportTable, TableLine, print_table, to_csv, to_latex, to_markdown
from ensemble.reporting.trial_rows import EvaluatedTrials, TrialRow, group_by_settings, leave_out_snapshots
from trainables.records.ensemble_file import Estimates
from trainables.records.ledger import Event, Ledger, Sweep
from trainables.records.mlflow_ledger import LedgerOptions
from trainables.retrieval import METRIC_TITLES

SEEDS_FILE = "seeds.csv"
LABELS = ("no.", "audio", "segment", "overlap", "text", "fine-tuned", "GPT", "other settings", "seed")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Command-line options of a report."""

    ledger: LedgerOptions = group("trials")
    sweep: tuple[str, ...] = option("names of sweeps (default: the newest)", (), section="trials")
    out: Path | None = option("folder to write (default: RUNS/reports/NAME)", None, metavar="DIR")
    no_test: bool = option("report validation metrics instead of test metrics", False)
    store: str | None = option("store with the recordings to play (default: the sweep's)", None)


def build_labels(row: TrialRow, number: str, others: str, seed: str) -> list[str]:
    """Return the texts in the label columns (LABELS) of a line of the table, which stands for one trial, or for trials
    that differ only in their seeds. `number` and `seed` are the texts in the columns of those names; `others` is a text
    with the settings that have no column of their own.
    """
    return [
        number, row.key.audio, f"{row.trial.audio.segment_s:g} s", row.overlap, row.key.text,
        "x" if row.key.fine_tuned else "", "x" if row.key.paraphrases else "", others, seed,
    ]  # fmt: skip


def to_percent(estimates: Estimates) -> dict[str, Cell]:
    """Return metrics and their intervals in percent, by name; {} if there are none."""
    return {
        name: Cell(100 * estimates[name].value, *(100 * limit for limit in estimates[name].interval))
        for name in paper_results.METRICS
        if estimates
    }


def list_published_metrics(published: paper_results.PaperMetrics | None, role: Role) -> dict[str, float]:
    """Return the paper's metrics in percent, by name. Return {} if `published` is None or the report isn't on the test
    split.
    """
    values = published if published and role == "test" else [None] * len(paper_results.METRICS)
    return {name: value for name, value in zip(paper_results.METRICS, values, strict=True) if value is not None}


def build_trial_line(row: TrialRow, role: Role, others: str, shows_parent_seeds: bool) -> TableLine:
    """Return a trial as a line of the table for the split with this role. `others` is a text with its settings that
    have no column. The line shows the trial's own seed or, if `shows_parent_seeds` is true, those of all its stages.
    """
    seeds = () if row.trial.average_of else trial_rows.list_seeds(row.trial)
    labels = build_labels(
        row, str(row.number), others, ", ".join(map(str, seeds if shows_parent_seeds else seeds[-1:]))
    )
    return TableLine(
        labels, to_percent(row.metrics), list_published_metrics(paper_results.find_published(row.trial), role)
    )


def build_ensemble_line(row: EnsembleRow, role: Role) -> TableLine:
    """Return an ensemble as a line of the table for the split with this role. For the test split, the metrics
    that the paper reports for such an ensemble stand beside them.
    """
    metric = row.ensemble.metric
    by = "" if metric == "map10" else f", by {METRIC_TITLES.get(metric, metric)}"
    labels = ["", f"ensemble of {format_ranges(row.numbers)}{by}", *[""] * (len(LABELS) - 2)]
    return TableLine(
        labels,
        to_percent(row.metrics),
        list_published_metrics(paper_results.ENSEMBLE if row.matches_paper_ensemble else None, role),
        True,
    )


def build_seeds_line(rows: Sequence[TrialRow], role: Role, others: str) -> TableLine:
    """Return one line of the table for trials that differ only in their seeds: mean, minimum and maximum of each metric
    on the split with this role. `others` is a text with their settings that have no column.
    """
    values = {name: [100 * row.metrics[name].value for row in rows] for name in paper_results.METRICS}
    figures = {
        name: Cell(float(np.mean(metric_values)), min(metric_values), max(metric_values))
        for name, metric_values in values.items()
    }
    labels = build_labels(rows[0], format_ranges([row.number for row in rows]), others, str(len(rows)))
    return TableLine(labels, figures, list_published_metrics(paper_results.find_published(rows[0].trial), role))


def format_ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as text, in which successive ones form ranges, such as '1 to 3, 5'."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    separators = {1: "", 2: ", "}
    ends = [(group[0],) if len(group) == 1 else (group[0], group[-1]) for group in groups]
    ranges = [separators.get(len(group), " to ").join(map(str, end)) for group, end in zip(groups, ends, strict=True)]
    return ", ".join(ranges)


def build_tables(
    rows: Sequence[TrialRow], ensembles: Sequence[EnsembleRow], split: str, role: Role
) -> list[ReportTable]:
    """Return the table of the trials in `rows` and of the ensembles and, if some trials differ only in their seeds, a
    second table of means over seeds. `split` is the split's name, for the titles, and `role` its role.
    """
    parents = {trial_rows.list_seeds(row.trial)[:-1] for row in rows if row.trial.pretraining}
    others = trial_rows.describe_other_settings(rows)
    lines = [build_trial_line(row, role, others[row.number], len(parents) > 1) for row in rows]
    lines += [build_ensemble_line(ensemble, role) for ensemble in ensembles]
    title = f"In percent, on {split}, with 95 % bootstrap intervals over clips."
    tables = [ReportTable(title, LABELS, ("low", "high"), lines)]
    trainings = leave_out_snapshots(rows)
    groups = [[row for row in group if row.metrics] for group in group_by_settings(trainings).values()]
    over_seeds = [build_seeds_line(group, role, others[group[0].number]) for group in groups if len(group) > 1]
    if over_seeds:
        title = f"Over seeds, in percent, on {split}: mean, minimum and maximum."
        tables.append(ReportTable(title, (*LABELS[:-1], "seeds"), ("least", "greatest"), over_seeds))
    return tables if any(others.values()) else [remove_label_column(table, "other settings") for table in tables]


def remove_label_column(table: ReportTable, heading: str) -> ReportTable:
    """Return a table without the label column that has this heading."""
    index = list(table.headings).index(heading)

    def rest(labels: Sequence[str]) -> list[str]:
        return [*labels[:index], *labels[index + 1 :]]

    lines = [replace(line, labels=rest(line.labels)) for line in table.lines]
    return replace(table, headings=rest(table.headings), lines=lines)


def list_notes(evaluated: EvaluatedTrials, ensembles: Sequence[EnsembleRow]) -> list[str]:
    """Return a sentence with the reason for each trial and ensemble whose metrics on the split are missing or were read
    from the ledger instead of computed from embeddings, and one on snapshots if there are any.
    """
    snapshots = format_ranges([row.number for row in evaluated.rows if row.is_snapshot])
    note = (
        f"{snapshots}: snapshots, models of the trainings in other rows after one of their cycles. They are in this "
        "table only: means over seeds, main effects, learning curves and costs leave them out."
    )
    rows = [note] * bool(snapshots)
    rows += [
        f"No metrics of {row.number}, {row.candidate.name}: {row.missing}" for row in evaluated.rows if row.missing
    ]
    return rows + [
        f"The ensemble of {format_ranges(ensemble.numbers)}: {ensemble.missing}"
        for ensemble in ensembles
        if ensemble.missing
    ]


def explain_newest(
    evaluated: EvaluatedTrials, ensembles: Sequence[EnsembleRow], store: str | None
) -> tuple[EnsembleRow | None, list[RetrievalExample], PlayableClips]:
    """Return the newest ensemble whose members' embeddings all exist, retrieval examples of it, and excerpts of the
    recordings in the store. Without such an ensemble, return None, no examples and no excerpts.
    """
    newest = next((newest for newest in ensembles if not newest.missing), None)
    split = evaluated.split
    if newest is None or newest.scores is None or split is None:
        return None, [], PlayableClips({})
    examples = build_examples(newest.scores, newest.ensemble, split)
    if store is None:
        return newest, examples, PlayableClips({}, ["no store is known: give --store"])
    try:
        return newest, examples, load_excerpts(store, examples, split.split, split.fingerprint)
    except (UserError, OSError) as error:
        return newest, examples, PlayableClips({}, [str(error)])


def require_accessible_paths(out: Path, store: str | None, rows: Sequence[TrialRow], role: Role) -> None:
    """Create the report's folder, `out`. Raise UserError if that is impossible, or if a store is given that lacks the
    split with this role on which the trials in `rows` were evaluated.

    It is called before the look at test, which a failed report would waste.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; give a folder that can be written") from error
    if store:
        open_split(store, rows[0].trial.test if role == "test" else rows[0].trial.validation)


def run(options: Options) -> None:
    """Write and print the report of one or more sweeps."""
    role: Role = "validation" if options.no_test else "test"
    ledger = options.ledger.open()
    sweeps = [ledger.find_sweep(name) for name in dict.fromkeys(options.sweep or [None])]
    name = "-".join(sweep.name for sweep in sweeps)
    folder = options.out or options.ledger.location.local_folder / "reports" / name
    selected, unreadable = read_ensembles(ledger, sweeps)
    trials = {candidate.signature: candidate for candidate in candidates.find_candidates(ledger, sweeps)}
    trials |= {soup.signature: soup for soup in find_soups(ledger, selected)}
    rows, notes = trial_rows.build_rows(ledger, list(trials.values()))
    if not rows:
        raise UserError(f"no trial of {name} can be read: {notes[0]}")
    require_accessible_paths(folder, options.store, rows, role)
    evaluated = trial_rows.evaluate_rows(ledger, rows, role)
    if evaluated.source is None:
        has_others = role == "test" and trial_rows.evaluate_rows(ledger, rows, "validation").source is not None
        instead = "; --no-test reports on validation" if has_others else ""
        raise UserError(f"no trial of {name} has {role} metrics: {evaluated.rows[0].missing}{instead}")
    ensembles, not_shown = build_ensemble_rows(ledger, selected, evaluated, role)
    notes += unreadable + not_shown + list_notes(evaluated, ensembles)
    store = options.store or sweeps[0].description.get("store")
    newest, examples, clips = explain_newest(evaluated, ensembles, store)
    split, fingerprint = evaluated.source.split, evaluated.source.fingerprint
    tables = build_tables(evaluated.rows, ensembles, split, role)
    title = f"{' and '.join(sweep.name for sweep in sweeps)} on {split}"
    texts = {
        **dict(zip(("report.csv", SEEDS_FILE), map(to_csv, tables), strict=False)),
        "report.md": "\n".join([f"# {title}\n", *map(to_markdown, tables), *(f"- {note}" for note in notes)]),
        "report.tex": "% \\usepackage{booktabs}\n" + "\n".join(map(to_latex, tables)),
        "report.html": render_page(ReportContent(title, tables, notes, evaluated.rows, newest, examples, clips)),
    }
    console = PlainConsole()
    earlier = log_look_at_test(ledger, sweeps, evaluated.rows, fingerprint, texts) if role == "test" else 0
    for table in tables:
        print_table(table)
    for note in (*notes, *(f"Recordings are missing: {problem}" for problem in clips.problems)):
        console.print_line(note)
    if not ensembles:
        console.print_line(f"These trials have no ensemble: run python ensemble/select.py --sweep {sweeps[0].name}")
    if role == "test":
        console.print_line(f"Looks at {split} before this one: {earlier}")
    (folder / SEEDS_FILE).unlink(missing_ok=True)  # left by an earlier report
    for file, text in texts.items():
        write_text(folder / file, text)
        console.print_line(f"Wrote {folder / file} ({format_size(folder / file)})")


def log_look_at_test(
    ledger: Ledger, sweeps: Sequence[Sweep], rows: Sequence[TrialRow], fingerprint: str, texts: Mapping[str, str]
) -> int:
    """Log the report of sweeps, with its files (`texts`, by name), as a look at the test split with this fingerprint,
    before any metric is shown. Return the number of earlier looks.
    """
    names = [sweep.name for sweep in sweeps]
    settings = {
        "metric": "map10",
        "method": "report",
        "fusion": "none",
        "direction": "t2a",
        "pool": " and ".join(names),
    }
    members = ",".join(row.candidate.signature for row in rows if row.metrics)
    with create_scratch_folder() as scratch:
        for file, text in texts.items():
            write_text(scratch / file, text)
        files = [scratch / file for file in texts]
        name = f"report of {'-'.join(names)}"
        event = Event("evaluation", name, members, fingerprint, sweeps[0].run_id, settings, [], files)
        return log_and_count(ledger, event)


def format_size(path: Path) -> str:
    """Return a file's size as text, such as '1.5 MB' or '20.1 kB'."""
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Run report.py with these command-line arguments, and return the exit status."""
    return run_command(argv, "report.py", __doc__, Command(Options, run))


if __name__ == "__main__":
    sys.exit(main())
