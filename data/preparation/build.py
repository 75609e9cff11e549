"""Prepare the splits of a corpus: decode each clip once, and write shards and tables into a store."""

import contextlib
import datetime
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data import corpora
from data.errors import UserError
from data.leakage import exclusions
from data.preparation import describe
from data.preparation.wordless import drop_wordless
from data.runtime.parallel import IndexedResults, put_in_object_store, run_in_threads, run_on_ray
from data.runtime.progress import ProgressLine
from data.schema import SAMPLE_RATE_HZ, Split
from data.splits import is_built_on_demand
from data.store import shard_writer, split_writer, storage
from data.store.locks import lock_folder
from data.store.shard_writer import ShardSummary
from data.store.storage import Store
from data.store.stored_split import StoredSplit, open_split
from data.waveform import PCM16_BYTES, Codec

logger = logging.getLogger("chorale.prepare")

SHARDS_PER_SPLIT = 64
"""Number of shards per split, within MIN_CLIPS_PER_SHARD and MAX_CLIPS_PER_SHARD: enough to occupy all workers."""

MIN_CLIPS_PER_SHARD, MAX_CLIPS_PER_SHARD = 8, 128
"""Bounds of the clips per shard: a killed worker loses at most one shard, and 400,000 clips make some 3,000 files."""

MAX_LOCAL_CLIPS, MAX_LOCAL_BYTES = 2_000, 10**9
"""Limits up to which threads of this process are used instead of Ray: less than 20 s on two cores (measured)."""

MAX_LOGGED_ITEMS = 20
"""Maximum number of skipped or changed clips logged one by one; `describe --list` lists all of them."""


@contextlib.contextmanager
def lock_store(store: Path) -> Iterator[None]:
    """Hold the write lock of a store within the context; its folder is created if absent. Raises UserError if
    another command holds the lock, and OSError, which names a file, if the store can't be written.

    The lock of a killed process is released.
    """
    try:
        with lock_folder(store):
            yield
    except ConnectionError:  # raised by Ray, not by the file system
        raise
    except OSError as error:
        error.filename = error.filename or str(store)  # a full disk is reported without a name
        raise


class PreparationProgress(ProgressLine):
    """Progress line with clips, hours, speed, and the remaining time estimated from the bytes that are left to read."""

    def __init__(self, name: str, num_clips: int, num_bytes: int) -> None:
        self.name, self.num_clips, self.num_bytes = name, num_clips, num_bytes
        self.done_clips = self.done_samples = self.done_bytes = 0
        super().__init__(logger)

    def add_clips(self, num_clips: int, num_samples: int, num_bytes: int) -> None:
        """Count `num_clips` clips as done, with their numbers of samples and of bytes that were read for them, and
        report progress.
        """
        self.done_clips += num_clips
        self.done_samples += num_samples
        self.done_bytes += num_bytes
        self.log_if_due()

    def line(self) -> str:
        """Return the text of the progress line."""
        elapsed_s = self.elapsed_s()
        audio_s = self.done_samples / SAMPLE_RATE_HZ
        left_s = elapsed_s * (self.num_bytes - self.done_bytes) / self.done_bytes if self.done_bytes else None
        remaining = "" if left_s is None else f", {datetime.timedelta(seconds=round(left_s))} left"
        return (
            f"{self.name}: {self.done_clips:,} of {self.num_clips:,} clips, {audio_s / 3600:.2f} h, "
            f"{audio_s / elapsed_s:,.0f} times real time{remaining}"
        )


def prepare_corpus(
    corpus: str, source: Path | None, store: Path, codec: Codec | None = None, seed: int = 0
) -> list[StoredSplit]:
    """Write the splits of a corpus into a store, in parallel, and update the store's exclusions. The corpus is read
    from the folder `source`, and its audio is stored in the format `codec`, by default the corpus module's choice.

    Recordings that can't be decoded are skipped and logged. A split that has no clips, and whose tables list no
    recordings, isn't written, and is removed if it existed before. Re-run an interrupted preparation to resume it.

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
    with lock_store(store):
        prepared = []
        for split in splits:
            prepared.append(prepare_split(split, store.resolve(), codec or module.CODEC))
            exclusions.update_exclusions(store)
    return [split for split in prepared if split]


def prepare_if_absent(corpus: str, store: Store) -> None:
    """Prepare `corpus` in a store if it is the built-in corpus and a split of it is missing there; otherwise do
    nothing.
    """
    if not is_built_on_demand(corpus, store):
        return
    logger.info("Preparing the corpus %r (once, some seconds) ...", corpus)
    for split in prepare_corpus(corpus, None, store.path):
        logger.info("  %s", format_summary(split))


def prepare_split(split: Split, store: Path, codec: Codec) -> StoredSplit | None:
    """Write one split into a store, its audio in the format `codec`, and return it; shards that an earlier preparation
    has completed are kept. Captions without a word are skipped. If the split has no clips and its tables list no
    recordings, an earlier version of it is removed from the store, and None is returned.
    """
    split = drop_wordless(split)
    name = f"{split.corpus}/{split.name}"
    folder = store / name
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".*.part"):
        leftover.unlink()
    summaries = write_shards(split, folder, codec)
    log_items(
        "skipped", split, [f"{item.origin}: {item.reason}" for item in split_writer.collect_skipped(split, summaries)]
    )
    log_items("warning", split, list_warnings(split, summaries))
    if not split.clips and not split.clips_of and not split.sources:
        (folder / storage.MANIFEST).unlink(missing_ok=True)
        split_writer.remove_stale_files(folder, set())
        return None
    if split.clips and not any(summary.clips for summary in summaries):
        raise UserError(f"{name}: none of its {len(split.clips)} clips could be decoded")
    if split.paraphrases:
        split_writer.write_paraphrases(folder, split.paraphrases)
    split_writer.write_split(folder, split, codec, summaries)
    return open_split(store, name)


def write_shards(split: Split, folder: Path, codec: Codec) -> list[ShardSummary]:
    """Write those shards of a split that are missing in `folder`, in parallel, the largest first, with audio in the
    format `codec`. Return the summaries of all its shards in order.
    """
    size = min(MAX_CLIPS_PER_SHARD, max(MIN_CLIPS_PER_SHARD, len(split.clips) // SHARDS_PER_SPLIT))
    parts = [split.clips[start : start + size] for start in range(0, len(split.clips), size)]
    paths = [folder / shard_writer.build_shard_name(number, part, codec) for number, part in enumerate(parts)]
    summaries = {number: summary for number, path in enumerate(paths) if (summary := shard_writer.read_summary(path))}
    num_bytes = [sum(clip.num_bytes for clip in part) for part in parts]
    todo = sorted(set(range(len(parts))) - set(summaries), key=lambda number: -num_bytes[number])
    if summaries:
        logger.info("%s/%s: %d of %d shards already exist", split.corpus, split.name, len(summaries), len(parts))
    work = [(paths[number], split.corpus, split.name, parts[number], codec) for number in todo]
    clips_left = sum(len(parts[number]) for number in todo)
    bytes_left = sum(num_bytes[number] for number in todo)
    warn_if_space_is_short(folder, bytes_left)
    with PreparationProgress(f"{split.corpus}/{split.name}", clips_left, bytes_left) as progress:
        for position, summary in run_in_parallel(shard_writer.write_shard, work, clips_left, bytes_left):
            number = todo[position]
            summaries[number] = summary
            progress.add_clips(len(parts[number]), summary.num_samples, num_bytes[number])
    return [summaries[number] for number in range(len(parts))]


def warn_if_space_is_short(folder: Path, num_bytes: int) -> None:
    """Log a warning if fewer than `num_bytes` bytes, the size of the recordings to be read, are free on the disk of a
    folder. The size of the shards can't be known in advance: it depends on sampling rates, channels and codecs.
    """
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < num_bytes:
        logger.warning(
            "%.1f GB of recordings are to be read, and %.1f GB are free in %s: if they don't suffice, free space and "
            "run the same command again; shards that are complete are kept",
            num_bytes / 1e9,
            free_bytes / 1e9,
            folder,
        )


def run_in_parallel(
    function: Callable[..., Any], work: Sequence[tuple[Any, ...]], num_clips: int, num_bytes: int
) -> IndexedResults:
    """Call a function with each tuple of arguments in `work`, in threads of this process if the input, `num_clips`
    clips of `num_bytes` bytes in total, is small, otherwise on Ray. Return an iterator over pairs of the tuple's index
    and the call's result, in order of completion.
    """
    return run_in_threads(function, work) if can_run_locally(num_clips, num_bytes) else run_on_ray(function, work)


def can_run_locally(num_clips: int, num_bytes: int) -> bool:
    """Return whether `num_clips` clips of `num_bytes` bytes in total are so little that threads of this process read
    them before Ray would have started.
    """
    return num_clips <= MAX_LOCAL_CLIPS and num_bytes <= MAX_LOCAL_BYTES


def count_clips_and_bytes(splits: Sequence[StoredSplit]) -> tuple[int, int]:
    """Return two numbers for some splits together: that of their clips, and that of the bytes of their audio as 16-bit
    PCM.
    """
    splits_with_clips = [split for split in splits if not split.manifest.clips_of]
    num_samples = sum(int(split.manifest.num_samples) for split in splits_with_clips)
    return sum(len(split.index) for split in splits_with_clips), num_samples * PCM16_BYTES


def list_warnings(split: Split, summaries: Sequence[ShardSummary]) -> list[str]:
    """Return the warnings about clips of a split that were changed when they were decoded, each with the origin of the
    clip. They are taken from the summaries of its shards.
    """
    warnings = {clip_id: texts for summary in summaries for clip_id, texts in summary.warnings.items()}
    return [f"{clip.origin}: {text}" for clip in split.clips for text in warnings.get(clip.clip_id, ())]


def log_items(kind: str, split: Split, lines: Sequence[str]) -> None:
    """Log lines of text about the skipped items of a split, or warnings about its clips, each as one message. Of more
    than MAX_LOGGED_ITEMS lines, only the number of the others is logged. `kind` is the first word of each message.
    """
    for line in lines[:MAX_LOGGED_ITEMS]:
        logger.warning("%s: %s", kind, line)
    if len(lines) > MAX_LOGGED_ITEMS:
        logger.warning(
            "%s: %d more of %s/%s; `python data/prepare.py describe --list` lists them all",
            kind,
            len(lines) - MAX_LOGGED_ITEMS,
            split.corpus,
            split.name,
        )


def format_summary(split: StoredSplit) -> str:
    """Return a line of text about a split: its numbers of clips, hours, captions and skipped items, and its
    fingerprint.
    """
    manifest = split.manifest
    hours = manifest.num_samples / SAMPLE_RATE_HZ / 3600
    published = describe.format_published_count(split.name)
    if manifest.clips_of:
        return f"{split.name}: {manifest.num_queries} queries about the clips of {manifest.clips_of}"
    return (
        f"{split.name}: {manifest.num_clips} clips, {hours:.2f} h, {manifest.num_queries} captions, "
        f"{manifest.num_set_aside} skipped, fingerprint {split.fingerprint}; "
        f"{manifest.num_listed} clips listed{f', published: {published}' if published else ''}"
    )


def update_duplicates(store: Path, exclude: bool) -> None:
    """Find training clips that sound the same as a held-out clip, write them as the store's table of duplicates,
    and update the exclusions. `exclude` says whether duplicates are excluded from training. Raises UserError if the
    store has no split.
    """
    splits = [open_split(store, name) for name in Store.of(store).list_splits()]
    if not splits:
        raise UserError(f"{store} holds no split")
    from data.leakage import duplicates

    size = count_clips_and_bytes(splits)
    with lock_store(store):
        held_out = duplicates.split_into_parts([split for split in splits if exclusions.is_held_out(split.name)])
        landmarks_by_part = run_in_parallel(duplicates.compute_index_landmarks, held_out, *size)
        index = duplicates.build_index([clips for _, clips in landmarks_by_part])
        training_parts = duplicates.split_into_parts(
            [split for split in splits if duplicates.is_trained_on(split.name)]
        )
        shared = index if can_run_locally(*size) else put_in_object_store(index)
        work = [(*part, shared) for part in training_parts]
        rows = [
            row
            for _, duplicate_rows in run_in_parallel(duplicates.find_duplicates, work, *size)
            for row in duplicate_rows
        ]
        duplicates.write_duplicates(Store.of(store), rows, exclude)
        exclusions.update_exclusions(store)
