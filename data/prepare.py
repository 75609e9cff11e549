"""Prepare a corpus: decode its recordings once, and write them as Arrow shards into a store.

If the command is interrupted, re-run it to resume.

Examples:
    python data/prepare.py clotho --source clotho --store store
    python data/prepare.py folder --source my_sounds --store store

Guide: docs/corpora.md
"""

import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from data import corpora
from data.corpora import Corpus
from data.errors import UserError
from data.leakage import exclusions
from data.preparation import describe
from data.preparation.build import (
    count_clips_and_bytes,
    format_summary,
    lock_store,
    prepare_corpus,
    run_in_parallel,
    update_duplicates,
)
from data.runtime.command_line import command
from data.runtime.console import PlainConsole
from data.runtime.options import Command, option, positional, run_command
from data.store import storage
from data.store.locks import lock_folder
from data.store.storage import Store, StoreOptions
from data.store.stored_split import open_split
from data.waveform import Codec

logger = logging.getLogger("chorale.prepare")


@dataclass(frozen=True, kw_only=True)
class DuplicateOptions(StoreOptions):
    """Command-line options of the search for clips that sound the same as a held-out clip."""

    exclude_duplicates: bool = option(
        "find clips that sound the same as a held-out clip, and exclude them from training", False)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PrepareOptions(DuplicateOptions):
    """Command-line options of the default command, which prepares a corpus."""

    corpus: str = positional(f"{', '.join(corpora.list_names())}")
    source: Path | None = option("folder of the corpus as published; not needed for synthetic", None)
    download: bool = option("download the public part of the corpus into --source first", False)
    codec: Codec | None = option("audio format in the store (default: flac for wavcaps, otherwise pcm16)", None)
    seed: int = option("seed of random splits and of synthetic soundscapes", 0)
    exclude: tuple[Path, ...] = option(
        "lists of ids to exclude from training: WavCaps' JSON, a CSV file, or plain ids", (),
        metavar="FILE")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DescribeOptions(StoreOptions):
    """Command-line options of the command `describe`."""

    png: Path | None = option("file of the picture (default: describe.png in the store)", None)
    list: bool = option("list every skipped or excluded clip with the reason", False)


@dataclass(frozen=True, kw_only=True)
class ExcludeOptions(StoreOptions):
    """Command-line options of the command `exclude`."""

    files: tuple[Path, ...] = positional("lists of ids: WavCaps' JSON, a CSV file, or plain ids", ())


@dataclass(frozen=True, kw_only=True)
class UploadOptions(StoreOptions):
    """Command-line options of the command `upload`."""

    to: str = option("destination, such as s3://bucket/store")


def prepare_command(options: PrepareOptions) -> None:
    """Prepare a corpus: download it if requested, write its splits into the store, update duplicates and
    exclusions, and log a summary of each split.
    """
    module = corpora.load(options.corpus)
    store = Store.of(options.store).path
    if options.download:
        download_corpus(module, options.source, options.corpus)
    if options.exclude:
        with lock_store(store):
            exclusions.set_exclusion_lists(store, options.exclude, keep=True)
    for split in prepare_corpus(options.corpus, options.source, store, options.codec, options.seed):
        logger.info(format_summary(split))
    if options.exclude_duplicates or exclusions.should_exclude_duplicates(store):
        update_duplicates(store, exclude=True)
    for line in describe.format_exclusions(store):
        logger.info(line)


def download_corpus(module: Corpus, target: Path | None, corpus: str) -> None:
    """Download a corpus by its module into the folder `target` that it is read from. Raises UserError, which names the
    corpus, if no folder is given.
    """
    if target is None:
        raise UserError(f"name the folder to download {corpus} into with --source")
    with lock_folder(target):
        module.download(target)


def verify_command(options: StoreOptions) -> int:
    """Read a store back and compare checksums; the exit status is 1 if something is wrong.

    Examples:
        python data/prepare.py verify
        python data/prepare.py verify --store s3://bucket/store
    """
    from data.preparation import verify

    store = Store.of(options.store)
    names = store.list_splits()
    if not names:
        raise UserError(f"{store} holds no split")
    storage.clear_mapped_files()
    num_problems = 0
    for name in names:
        problems: list[str] = []
        try:
            split = open_split(store, name)
            problems = verify.check_tables(split)
            if not split.manifest.clips_of:
                work = [(split, number) for number in range(len(split.manifest.shards))]
                for _, shard_problems in run_in_parallel(verify.check_shard, work, *count_clips_and_bytes([split])):
                    problems += shard_problems
        except (UserError, OSError, pa.ArrowException) as error:
            problems = [*problems, f"{name}: {error}"]
        for problem in problems:
            logger.error("problem: %s", problem)
        num_problems += len(problems)
        if not problems:
            logger.info("%s: %d clips are intact", name, split.manifest.num_clips)
    for problem in verify.check_exclusions(store, names):
        logger.error("problem: %s", problem)
        num_problems += 1
    if num_problems:
        logger.error("To repair a split, remove the files named above, and prepare its corpus again.")
    return 1 if num_problems else 0


def describe_command(options: DescribeOptions) -> None:
    """Print clips, hours, captions and exclusions of a store, and plot distributions.

    Examples:
        python data/prepare.py describe --store store
        python data/prepare.py describe --store store --list
    """
    store = Store.of(options.store)
    picture = options.png or (Path("store.png") if store.is_remote else store.path / "describe.png")
    describe.describe_store(store, PlainConsole(), picture, options.list)


def exclude_command(options: ExcludeOptions) -> None:
    """Replace a store's lists of ids to exclude from training by the given files, and recompute its exclusions. Without
    files, the lists are removed.

    Examples:
        python data/prepare.py exclude --store store blacklist.json more_ids.csv
        python data/prepare.py exclude --store store
    """
    store = Store.of(options.store).path
    if not Store.of(store).list_splits():
        raise UserError(f"{store} holds no split")
    with lock_store(store):
        exclusions.set_exclusion_lists(store, options.files, keep=False)
        exclusions.update_exclusions(store)
    for line in describe.format_exclusions(store):
        logger.info(line)


def duplicates_command(options: DuplicateOptions) -> None:
    """Find training clips that sound the same as a held-out clip under another id, and write them into the store. They
    are excluded from training only with --exclude-duplicates.

    Examples:
        python data/prepare.py duplicates --store store
        python data/prepare.py duplicates --store store --exclude-duplicates
    """
    store = Store.of(options.store).path
    update_duplicates(store, exclude=options.exclude_duplicates)
    for line in [*describe.format_duplicates(store), *describe.format_exclusions(store)]:
        logger.info(line)


def upload_command(options: UploadOptions) -> None:
    """Copy a store to an object store. Other commands can't write to the store meanwhile.

    Examples:
        python data/prepare.py upload --store store --to s3://bucket/store
        python data/prepare.py upload --to "s3://bucket/store?endpoint_override=host:9000&scheme=http"
    """
    store = Store.of(options.store)
    is_writable = store.path.is_dir() and os.access(store.path, os.W_OK)
    with lock_store(store.path) if is_writable else contextlib.nullcontext():
        storage.upload_store(store, options.to)


COMMANDS: dict[str, Command[Any]] = {
    "verify": Command(StoreOptions, verify_command),
    "describe": Command(DescribeOptions, describe_command),
    "exclude": Command(ExcludeOptions, exclude_command),
    "duplicates": Command(DuplicateOptions, duplicates_command),
    "upload": Command(UploadOptions, upload_command),
}


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the command that `argv` (by default, the program's arguments) names, and return its exit status."""
    return run_command(argv, "prepare.py", __doc__, Command(PrepareOptions, prepare_command), COMMANDS)


if __name__ == "__main__":
    sys.exit(main())
