"""Description of a store: tables of its contents, and plots of durations and caption lengths."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc
from rich.table import Table

from data import corpora
from data.errors import UserError
from data.leakage.exclusions import (
    DUPLICATES_FILE,
    SharedSource,
    find_shared_sources,
    has_exclude_flag,
    is_current,
    read_exclusions,
    read_store_table,
)
from data.runtime.console import PlainConsole
from data.runtime.printable import make_printable
from data.schema import DUPLICATES, SAMPLE_RATE_HZ, SplitId
from data.store.storage import Location, Store
from data.store.stored_split import StoredSplit, open_split

if TYPE_CHECKING:
    import matplotlib.axis
    import matplotlib.figure

MIN_LOG_RATIO = 5
"""Ratio of the longest to the shortest duration from which on the axis of durations is logarithmic."""

MAX_LABELLED_RATIO = 1_000
"""Ratio of a logarithmic axis' ends up to which 2 and 5 times the powers of ten are labelled as well."""

COLUMNS = (
    "split", "clips", "listed", "published", "hours", "captions", "skipped", "excluded", "codec", "fingerprint",
)  # fmt: skip


def format_published_count(name: str) -> str:
    """Return the published number of clips of a split, 'corpus/split', as text: '3,839', or '49,838 (v1) or 91,256
    (v2)' if the versions of the corpus differ; '' if unknown.
    """
    split_id = SplitId.parse(name)
    published = corpora.load(split_id.corpus).PUBLISHED
    counts = {version: sizes[split_id.split] for version, sizes in published.items() if split_id.split in sizes}
    if len(set(counts.values())) == 1:
        return f"{next(iter(counts.values())):,}"
    return " or ".join(f"{count:,} ({version})" for version, count in counts.items())


def describe_store(store: Store, console: PlainConsole, picture: Path, list_all: bool) -> None:
    """Print a table of a store's splits and a summary of its exclusions and duplicates on `console`, and plot clip
    durations and caption lengths into the PNG file `picture`. With `list_all`, also print every skipped and every
    excluded clip.

    Raises UserError if the store is empty or the picture can't be written.
    """
    splits = [open_split(store, name) for name in store.list_splits()]
    if not splits:
        raise UserError(f"{store} holds no split; prepare one with: python data/prepare.py CORPUS --store {store}")
    left_out: Counter[str] = Counter(read_exclusions(store)["split"].to_pylist())
    table = Table(box=None)
    for column in COLUMNS:
        table.add_column(
            column, justify="left" if column in ("split", "codec", "fingerprint") else "right", no_wrap=True
        )
    for split in splits:
        manifest = split.manifest
        table.add_row(
            make_printable(split.name),
            f"{manifest.num_clips:,}" if not manifest.clips_of else make_printable(f"of {manifest.clips_of}"),
            f"{manifest.num_listed:,}",
            format_published_count(split.name),
            f"{manifest.num_samples / SAMPLE_RATE_HZ / 3600:,.2f}",
            f"{manifest.num_queries:,}",
            f"{manifest.num_set_aside:,}",
            f"{left_out[split.name]:,}",
            split.codec,
            make_printable(split.fingerprint),
        )
    PlainConsole(file=console.file, width=max(160, console.width)).print(table)
    clips = sum(split.manifest.num_clips for split in splits)
    hours = sum(split.manifest.num_samples for split in splits) / SAMPLE_RATE_HZ / 3600
    lines = [f"{clips:,} clips, {hours:,.2f} h", *format_exclusions(store), *format_duplicates(store)]
    if list_all:
        lines += [f"skipped: {aside.origin}: {aside.reason}" for split in splits for aside in split.set_aside]
        lines += [
            f"warning: {clip_id}: {text}"
            for split in splits
            if not split.manifest.clips_of
            for clip_id, texts in split.read_warnings().items()
            for text in texts
        ]
        lines += [f"excluded: {row['clip_id']}: {row['reason']}" for row in read_exclusions(store).to_pylist()]
    for line in lines:
        console.print_line(line)
    try:
        plot_distributions(splits, picture)
    except OSError as error:
        raise UserError(f"{picture} can't be written: {error.strerror}; name another with --png") from error
    console.print_line(f"distributions: {picture}")


def format_exclusions(store: Location) -> list[str]:
    """Return lines of text: for each split with clips that are excluded from training, the number of these clips, then
    for each corpus the recordings that its training split and its held-out splits share.
    """
    counts: Counter[str] = Counter(read_exclusions(store)["split"].to_pylist())
    excluded = [f"excluded from training: {count:,} clips of {name}" for name, count in sorted(counts.items())]
    return [*excluded, *format_shared_sources(store)]


def format_shared_sources(store: Location) -> list[str]:
    """Return a line of text for each corpus of which some recordings occur both in its training split and in its
    held-out splits: their number, the number of training captions concerned, and the clips.
    """
    splits = [open_split(store, name) for name in Store.of(store).list_splits()]
    by_corpus: dict[str, list[SharedSource]] = {}
    for shared in find_shared_sources([split for split in splits if split.manifest.corpus in corpora.list_names()]):
        by_corpus.setdefault(SplitId.parse(shared.training_clip_ids[0]).corpus, []).append(shared)
    return [
        f"{corpus}: {len(shared)} recordings are both in a training split and in a held-out split as published "
        f"({sum(one.num_captions for one in shared)} training captions; not excluded): "
        + "; ".join(f"{one.source}: {', '.join([*one.training_clip_ids, *one.held_out_clip_ids])}" for one in shared)
        for corpus, shared in by_corpus.items()
    ]


def format_duplicates(store: Location) -> list[str]:
    """Return lines of text about the duplicates found in a store: one for each, and one with their number; or only
    a line saying that they haven't been searched for.
    """
    table = read_store_table(Store.of(store), DUPLICATES_FILE, DUPLICATES)
    if table.schema.metadata is None:
        return ["duplicates under other ids: not searched for (run `python data/prepare.py duplicates`)"]
    treated = "excluded" if has_exclude_flag(table) else "not excluded from training"
    pairs = [
        f"same sound for {row['overlap_s']:.1f} s: {row['clip_id']} and {row['held_out_clip_id']}"
        for row in table.to_pylist()
    ]
    counted = f"duplicates under other ids: {len(pairs):,} clips, {treated}"
    if not is_current(Store.of(store), table):
        counted += "; splits prepared since haven't been searched (run `python data/prepare.py duplicates`)"
    return [*pairs, counted]


def plot_distributions(splits: list[StoredSplit], picture: Path) -> None:
    """Plot the distributions of clip durations and of caption lengths, each with a curve for every corpus, into a
    PNG file.
    """
    durations: dict[str, list[np.ndarray]] = {}
    words: dict[str, list[np.ndarray]] = {}
    for split in splits:
        corpus = split.manifest.corpus
        if not split.manifest.clips_of:
            durations.setdefault(corpus, []).append(split.num_samples / SAMPLE_RATE_HZ)
        lengths = pc.list_value_length(pc.utf8_split_whitespace(split.queries["text"]))
        words.setdefault(corpus, []).append(lengths.to_numpy())
    pooled = {corpus: np.concatenate(parts) for corpus, parts in durations.items()}
    counts = {corpus: np.concatenate(parts) for corpus, parts in words.items()}
    draw_distributions(pooled, counts).savefig(picture, dpi=150, format="png")


def draw_distributions(
    durations: Mapping[str, np.ndarray], words: Mapping[str, np.ndarray]
) -> "matplotlib.figure.Figure":
    """Return a figure with the distributions of durations in seconds and of numbers of words, by corpus."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    all_durations = np.concatenate(list(durations.values()))
    shortest, longest = all_durations.min(initial=30) * 0.99, all_durations.max(initial=1) * 1.01
    is_wide = longest > MIN_LOG_RATIO * shortest
    bins = np.geomspace(shortest, longest, 50) if is_wide else np.linspace(shortest, longest, 50)
    for corpus, values in durations.items():
        left.hist(values, bins, histtype="step", linewidth=1.5, label=f"{corpus}: {len(values):,} clips")
    left.set(xscale="log" if is_wide else "linear", yscale="log", xlabel="duration (s)", ylabel="clips")
    left.set(title="Duration of clips", ylim=(0.8, None))
    for axis in [left.yaxis, *([left.xaxis] if is_wide else [])]:
        label_log_axis(axis)
    max_words = max((values.max() for values in words.values() if len(values)), default=1)
    for corpus, values in words.items():
        label = f"{corpus}: {len(values):,} captions"
        right.hist(values, np.arange(max_words + 2) - 0.5, density=True, histtype="step", linewidth=1.5, label=label)
    right.set(xlabel="words", ylabel="share of captions", title="Length of captions")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return figure


def label_log_axis(axis: "matplotlib.axis.Axis") -> None:
    """Label a logarithmic axis with plain numbers, few enough not to overlap."""
    import matplotlib.ticker

    first, last = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if last < MAX_LABELLED_RATIO * first else (1.0,)
    axis.set_major_locator(matplotlib.ticker.LogLocator(subs=subs, numticks=8))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(matplotlib.ticker.NullFormatter())
