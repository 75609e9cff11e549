"""Prepare the splits of a corpus: decode each clip once, and write shards and tables into a store."""

import contextlib
import datetime
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock

from data import corpora
from data.errors import UserError
from data.leakage import exclusions
from data.preparation import describe
from data.runtime.parallel import Results, run_in_threads, run_on_ray, share
from data.runtime.progress import ProgressLine
from data.schema import SAMPLE_RATE_HZ, Split
from data.splits import is_built_on_demand
from data.store import shard_writer, split_writer, storage
from data.store.shard_writer import ShardSummary
from data.store.storage import Store
from data.store.stored_split import StoredSplit, open_split
from data.waveform import PCM16_BYTES, Codec

logger = logging.getLogger("chorale.prepare")

SHARDS_PER_SPLIT = 64
"""Number of shards per split, within MIN_CLIPS_PER_SHARD and MAX_CLIPS_PER_SHARD: enough to occupy all workers."""

LEAST_CLIPS_PER_SHARD, MOST_CLIPS_PER_SHARD = 8, 128
"""Bounds of the clips per shard: a killed worker loses at most one shard, and 400,000 clips make some 3,000 files."""

MAX_CLIPS_HERE, MAX_BYTES_HERE = 2_000, 10**9
"""Limits up to which threads of this process are used instead of Ray: less than 20 s on two cores (measured)."""

SAID_SET_ASIDE = 20
"""Maximum number of skipped items logged one by one; `describe --list` lists all of them."""


@contextlib.contextmanager
def writing(store: Path) -> Iterator[None]:
    """Hold the write lock of a store. Raises UserError if another command holds it, or the store can't be written.

    The lock of a killed process is released.
    """
    try:
        store.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(store / ".lock", timeout=0):
            yield
    except filelock.Timeout:
        raise UserError(f"another command is writing to {store}; wait until it has finished") from None
    except ConnectionError:  # raised by Ray, not by the file system
        raise
    except OSError as error:
        problem = f"{error.filename or store} can't be written: {error.strerror or error}"
        raise UserError(f"{problem}; fix the cause, then re-run the same command to resume") from error


class Progress(ProgressLine):
    """Progress line with clips, hours, speed, and the remaining time estimated from the bytes that are left to read."""

    def __init__(self, name: str, num_clips: int, num_bytes: int) -> None:
        self.name, self.num_clips, self.num_bytes = name, num_clips, num_bytes
        self.done_clips = self.done_samples = self.done_bytes = 0
        super().__init__(logger)

    def add(self, num_clips: int, num_samples: int, num_bytes: int) -> None:
        """Count clips that are done, with their samples and source bytes, and report progress."""
        self.done_clips += num_clips
        self.done_samples += num_samples
        self.done_bytes += num_bytes
        self.changed()

    def line(self) -> str:
        """Return the text of the progress line."""
        elapsed_s = self.elapsed_s()
        audio_s = self.done_samples / SAMPLE_RATE_HZ
        left_s = elapsed_s * (self.num_bytes - self.done_bytes) / self.done_bytes if self.done_bytes else None
        left = "" if left_s is None else f", {datetime.timedelta(seconds=round(left_s))} left"
        return (
            f"{self.name}: {self.done_clips:,} of {self.num_clips:,} clips, {audio_s / 3600:.2f} h, "
            f"{audio_s / elapsed_s:,.0f} times real time{left}"
        )


def prepare(
    corpus: str, source: Path | None, store: Path, codec: Codec | None = None, seed: int = 0
) -> list[StoredSplit]:
    """Write the splits of a corpus into a store, in parallel, and update the store's exclusions.

    Recordings that can't be decoded are skipped and logged. A split without clips and sources isn't written, and is
    removed if it existed before. Re-run an interrupted preparation to resume it.

    Args:
        corpus: Name of the corpus.
        source: Folder of the corpus as published; None for the synthetic corpus.
        store: Folder of the store.
        codec: Format of the audio; by default the one that the corpus module chooses.
        seed: Seed of random splits and of synthetic soundscapes.

    Returns:
        The splits that were written.

    Raises:
        UserError: If the corpus is unknown or its tables are invalid.
    """
    module = corpora.load(corpus)
    splits = module.read(source.resolve() if source else None, seed)
    with writing(store):
        prepared = []
        for split in splits:
            prepared.append(prepare_split(split, store.resolve(), codec or module.CODEC))
            exclusions.update(store)
    return [split for split in prepared if split]


def prepare_if_absent(corpus: str, store: Store) -> None:
    """Prepare the built-in corpus, which needs no files, if a local store doesn't hold it."""
    if not is_built_on_demand(corpus, store):
        return
    logger.info("Preparing the corpus %r (once, some seconds) ...", corpus)
    for split in prepare(corpus, None, store.path):
        logger.info("  %s", summary_line(split))


def prepare_split(split: Split, store: Path, codec: Codec) -> StoredSplit | None:
    """Write the missing files of one split and return it; return None for a split without clips and sources."""
    name = f"{split.corpus}/{split.name}"
    folder = store / name
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".*.part"):
        leftover.unlink()
    summaries = write_shards(split, folder, codec)
    report_set_aside(split, summaries)
    if not split.clips and not split.clips_of and not split.sources:
        (folder / storage.MANIFEST).unlink(missing_ok=True)
        split_writer.remove_all_but(folder, set())
        return None
    if split.clips and not any(summary.clips for summary in summaries):
        raise UserError(f"{name}: none of its {len(split.clips)} clips could be decoded")
    if split.paraphrases:
        split_writer.write_paraphrases(folder, split.paraphrases)
    split_writer.write_split(folder, split, codec, summaries)
    return open_split(store, name)


def write_shards(split: Split, folder: Path, codec: Codec) -> list[ShardSummary]:
    """Write the missing shards, largest first, so that no worker is left alone with a large one at the end."""
    size = min(MOST_CLIPS_PER_SHARD, max(LEAST_CLIPS_PER_SHARD, len(split.clips) // SHARDS_PER_SPLIT))
    parts = [split.clips[start : start + size] for start in range(0, len(split.clips), size)]
    paths = [folder / shard_writer.shard_name(number, part, codec) for number, part in enumerate(parts)]
    summaries = {number: summary for number, path in enumerate(paths) if (summary := shard_writer.read_summary(path))}
    num_bytes = [sum(clip.num_bytes for clip in part) for part in parts]
    todo = sorted(set(range(len(parts))) - set(summaries), key=lambda number: -num_bytes[number])
    if summaries:
        logger.info("%s/%s: %d of %d shards already exist", split.corpus, split.name, len(summaries), len(parts))
    work = [(paths[number], split.corpus, split.name, parts[number], codec) for number in todo]
    clips_left = sum(len(parts[number]) for number in todo)
    bytes_left = sum(num_bytes[number] for number in todo)
    with Progress(f"{split.corpus}/{split.name}", clips_left, bytes_left) as progress:
        for place, summary in in_parallel(shard_writer.write_shard, work, clips_left, bytes_left):
            number = todo[place]
            summaries[number] = summary
            progress.add(len(parts[number]), summary.num_samples, num_bytes[number])
    return [summaries[number] for number in range(len(parts))]


def in_parallel(
    function: Callable[..., Any], work: Sequence[tuple[Any, ...]], num_clips: int, num_bytes: int
) -> Results:
    """Call a function with each tuple of arguments: in threads of this process for small inputs, otherwise on Ray."""
    return run_in_threads(function, work) if is_small(num_clips, num_bytes) else run_on_ray(function, work)


def is_small(num_clips: int, num_bytes: int) -> bool:
    """Return whether this process reads the input faster than Ray takes to start."""
    return num_clips <= MAX_CLIPS_HERE and num_bytes <= MAX_BYTES_HERE


def size_of(splits: Sequence[StoredSplit]) -> tuple[int, int]:
    """Return the number of clips of splits, and their size in bytes as 16-bit PCM."""
    own = [split for split in splits if not split.manifest.clips_of]
    num_samples = sum(int(split.manifest.num_samples) for split in own)
    return sum(len(split.index) for split in own), num_samples * PCM16_BYTES


def report_set_aside(split: Split, summaries: Sequence[ShardSummary]) -> None:
    """Log the skipped items of a split, at most MAX_LOGGED_SKIPS one by one."""
    set_aside = split_writer.all_set_aside(split, summaries)
    for clip in set_aside[:SAID_SET_ASIDE]:
        logger.warning("skipped: %s: %s", clip.origin, clip.reason)
    if len(set_aside) > SAID_SET_ASIDE:
        logger.warning(
            "skipped: %d more of %s/%s; `python data/prepare.py describe --list` lists them all",
            len(set_aside) - SAID_SET_ASIDE,
            split.corpus,
            split.name,
        )


def summary_line(split: StoredSplit) -> str:
    """Return a line that summarises a split."""
    manifest = split.manifest
    hours = manifest.num_samples / SAMPLE_RATE_HZ / 3600
    published = describe.published(split.name)
    if manifest.clips_of:
        return f"{split.name}: {manifest.num_queries} queries about the clips of {manifest.clips_of}"
    return (
        f"{split.name}: {manifest.num_clips} clips, {hours:.2f} h, {manifest.num_queries} captions, "
        f"{manifest.num_set_aside} skipped, fingerprint {split.fingerprint}; "
        f"{manifest.num_listed} clips listed{f', published: {published}' if published else ''}"
    )


def look_for_duplicates(store: Path, exclude: bool) -> None:
    """Search the training clips for sounds of held-out clips, and write the table of duplicates and the exclusions."""
    splits = [open_split(store, name) for name in Store.of(store).splits()]
    if not splits:
        raise UserError(f"{store} holds no split")
    from data.leakage import duplicates

    size = size_of(splits)
    with writing(store):
        held_out = duplicates.parts([split for split in splits if exclusions.is_held_out(split.name)])
        found = in_parallel(duplicates.landmarks_to_find, held_out, *size)
        index = duplicates.build([clips for _, clips in found])
        trained_on = duplicates.parts([split for split in splits if duplicates.is_trained_on(split.name)])
        shared = index if is_small(*size) else share(index)
        work = [(*part, shared) for part in trained_on]
        rows = [row for _, alike in in_parallel(duplicates.find, work, *size) for row in alike]
        duplicates.write(Store.of(store), rows, exclude)
        exclusions.update(store)
