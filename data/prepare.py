"""Prepare a corpus: decode it once, and write it as Arrow shards into a store.

python data/prepare.py clotho --source DIR --store DIR      # or audiocaps, wavcaps, folder, synthetic
python data/prepare.py verify --store DIR                   # read everything back and check it
python data/prepare.py describe --store DIR                 # what it holds, and distributions as a picture
python data/prepare.py exclude --store DIR [FILE ...]       # have lists of clips not to train on, these and no others
python data/prepare.py duplicates --store DIR               # look for held-out sounds under other ids
python data/prepare.py upload --store DIR --to URI          # copy a store to an object store

A preparation that was ended goes on where it was when the same command is given again.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from rich.console import Console

from data import corpora
from data.corpora import Corpus
from data.errors import UserError
from data.leakage import exclusions
from data.preparation import describe
from data.preparation.build import in_parallel, look_for_duplicates, prepare, size_of, summary_line, writing
from data.runtime.command_line import AddArguments, Run, command, run_one
from data.store import storage
from data.store.storage import Store
from data.store.stored_split import open_split
from data.waveform import CODECS

logger = logging.getLogger("chorale.prepare")


def prepare_command(arguments: argparse.Namespace) -> None:
    """Prepare a corpus as the command line says."""
    module = corpora.load(arguments.corpus)
    store = Store.of(arguments.store).path
    if arguments.download:
        download(module, arguments.source, arguments.corpus)
    if arguments.exclude:
        with writing(store):
            exclusions.set_lists(store, arguments.exclude, keep=True)
    for split in prepare(arguments.corpus, arguments.source, store, arguments.codec, arguments.seed):
        logger.info(summary_line(split))
    if arguments.exclude_duplicates or exclusions.excludes_duplicates(store):
        look_for_duplicates(store, exclude=True)
    for line in describe.exclusion_lines(store):
        logger.info(line)


def download(module: Corpus, target: Path | None, corpus: str) -> None:
    """Fetch a corpus' files into what is then its source."""
    if target is None:
        raise UserError(f"name the directory that {corpus} is to be downloaded into with --source")
    module.download(target)


def verify_command(arguments: argparse.Namespace) -> int:
    """Read everything back; the exit status is 1 if something is wrong."""
    from data.preparation import verify

    store = Store.of(arguments.store)
    names = store.splits()
    if not names:
        raise UserError(f"{store} holds no split")
    storage.forget_mapped()
    num_wrong = 0
    for name in names:
        problems: list[str] = []
        try:
            split = open_split(store, name)
            problems = verify.tables(split)
            if not split.manifest.clips_of:
                work = [(split, number) for number in range(len(split.manifest.shards))]
                for _, found in in_parallel(verify.shard, work, *size_of([split])):
                    problems += found
        except (UserError, OSError, pa.ArrowException) as error:
            problems = [*problems, f"{name}: {error}"]
        for problem in problems:
            logger.error("wrong: %s", problem)
        num_wrong += len(problems)
        if not problems:
            logger.info("%s: %d clips as they were written", name, split.manifest.num_clips)
    for problem in verify.exclusions(store, names):
        logger.error("wrong: %s", problem)
        num_wrong += 1
    if num_wrong:
        logger.error("To mend a split, remove the files that are named, and prepare its corpus again.")
    return 1 if num_wrong else 0


def describe_command(arguments: argparse.Namespace) -> None:
    """Say what a store holds, and draw its distributions."""
    store = Store.of(arguments.store)
    picture = arguments.png or (Path("store.png") if store.is_remote else store.path / "describe.png")
    describe.describe(store, Console(), picture, arguments.list)


def exclude_command(arguments: argparse.Namespace) -> None:
    """Have a store remember these lists and no others, and work out its exclusions anew."""
    store = Store.of(arguments.store).path
    if not Store.of(store).splits():
        raise UserError(f"{store} holds no split")
    with writing(store):
        exclusions.set_lists(store, arguments.files, keep=False)
        exclusions.update(store)
    for line in describe.exclusion_lines(store):
        logger.info(line)


def duplicates_command(arguments: argparse.Namespace) -> None:
    """Look for held-out sounds under other ids."""
    store = Store.of(arguments.store).path
    look_for_duplicates(store, exclude=arguments.exclude_duplicates)
    for line in [*describe.duplicate_lines(store), *describe.exclusion_lines(store)]:
        logger.info(line)


def upload_command(arguments: argparse.Namespace) -> None:
    """Copy a store to an object store."""
    storage.copy(Store.of(arguments.store), arguments.to)


def add_prepare(parser: argparse.ArgumentParser) -> None:
    """The arguments for preparing a corpus."""
    parser.add_argument("corpus", help=f"one of: {', '.join(corpora.names())}; or one of: {', '.join(COMMANDS)}")
    parser.add_argument("--source", type=Path, help="where the corpus lies as published; synthetic needs none")
    parser.add_argument("--download", action="store_true", help="fetch what is public of it into --source first")
    parser.add_argument(
        "--codec", choices=CODECS, help="how audio is kept: flac is half the size, but is decoded in every epoch"
    )
    parser.add_argument("--seed", type=int, default=0, help="for whatever the corpus draws: splits, soundscapes")
    parser.add_argument(
        "--exclude",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="lists of ids not to train on, which the store remembers: WavCaps' JSON, a CSV, or plain ids",
    )
    add_exclude_duplicates(parser)


def add_exclude_duplicates(parser: argparse.ArgumentParser) -> None:
    """The flag by which clips that sound like a held-out one are dropped."""
    parser.add_argument(
        "--exclude-duplicates",
        action="store_true",
        help="look for clips that sound like a held-out one, and don't train on them",
    )


def add_describe(parser: argparse.ArgumentParser) -> None:
    """The arguments of describe."""
    parser.add_argument("--png", type=Path, help="where the picture goes (default: describe.png in the store)")
    parser.add_argument("--list", action="store_true", help="name all that is set aside or excluded, and why")


def add_exclude(parser: argparse.ArgumentParser) -> None:
    """The arguments of exclude."""
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="WavCaps' JSON, a CSV, or plain ids")


def add_upload(parser: argparse.ArgumentParser) -> None:
    """The arguments of upload."""
    parser.add_argument("--to", required=True, help="an object store, as s3://bucket/store")


COMMANDS: dict[str, tuple[Run, AddArguments]] = {
    "verify": (verify_command, lambda parser: None),
    "describe": (describe_command, add_describe),
    "exclude": (exclude_command, add_exclude),
    "duplicates": (duplicates_command, add_exclude_duplicates),
    "upload": (upload_command, add_upload),
}


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the command."""
    return run_one(argv, "prepare.py", __doc__, (prepare_command, add_prepare), COMMANDS)


if __name__ == "__main__":
    sys.exit(main())
