"""Have a chat model write other wordings of a split's captions, to train with in place of the captions themselves.

python data/paraphrase.py CORPUS --store DIR --dry-run                        # requests, tokens, price
python data/paraphrase.py CORPUS --store DIR [--model NAME] [--base-url URL]  # ask; the key is in OPENAI_API_KEY
python data/paraphrase.py CORPUS --store DIR --batch                          # through the Batch API, at half the price
python data/paraphrase.py CORPUS --store DIR --model grammar                  # by rules, without a server
python data/paraphrase.py import FILE --store DIR                             # published variations
python data/paraphrase.py review --store DIR                                  # a page to read them on

Every answer is kept in a journal beside the split before anything else happens. A run that was ended goes on where it
was when the same command is given again, and what was answered is never asked again.
"""

import argparse
import asyncio
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath, PureWindowsPath

from data import answers, chat, commands, corpora, prices, shards
from data.answers import CHECKS, MARKED
from data.asking import INTERRUPTED, Progress, Run
from data.batch_api import Batches
from data.captions import caption_hash, normalise
from data.errors import UserError, positive, run_command
from data.journal import Journal
from data.prices import Price
from data.questions import Answered, Budget, Captions, expected_tokens, is_done
from data.review import Row, write_page
from data.schema import Paraphrase
from data.shards import StoredSplit, open_split
from data.storage import Store

logger = logging.getLogger("chorale.paraphrase")

ATTEMPTS = 3
"""A caption is asked about, until enough sentences of its answers are kept."""

DEFAULT_VARIANTS = 5
"""Of a caption, as in the paper."""

SAID_INCOMPLETE = 20
"""Captions without all their paraphrases named on the console; the page of `review` has them all."""

REVIEW_FILE = "paraphrases.html"
IMPORTED = "imported"


@dataclass
class Outcome:
    """What became of a split's captions."""

    captions: int = 0
    complete: int = 0
    without: int = 0
    unanswered: int = 0
    paraphrases: int = 0
    sentences: int = 0
    failed: Counter[str] = field(default_factory=Counter)  # sentences by check
    incomplete: list[str] = field(default_factory=list)  # the first captions that a person should look at


def judge(
    captions: Captions, answered: Answered, attempts: int, outcome: Outcome
) -> Iterator[tuple[Row, Paraphrase | None]]:
    """Each caption with all that was written for it, and its row of the table; `outcome` is counted meanwhile."""
    for clip_id, request in captions.requests():
        found = answered.lines(request)
        variants = answers.judged(request.caption, [line["answer"] for line in found])
        good = [variant.text for variant in variants if variant.is_kept][: captions.variants]
        problem, left = "", len(good) < captions.variants and len(found) < attempts
        if len(good) < captions.variants:
            why = ", ".join(sorted({line["problem"] for line in found} - {""})) or ("not answered yet" if left else "")
            problem = f"{len(good)} of {captions.variants} paraphrases" + (f": {why}" if why else "")
        outcome.captions += 1
        outcome.complete += not problem
        outcome.without += not good
        outcome.unanswered += left
        outcome.paraphrases += len(good)
        outcome.sentences += len(variants)
        outcome.failed.update(name for variant in variants for name in variant.failed)
        if problem and not left and len(outcome.incomplete) < SAID_INCOMPLETE:
            outcome.incomplete.append(f"{clip_id}: {request.caption!r}: {problem}")
        row = Row(clip_id, request.caption, request.tags, tuple(variants), problem)
        if not good:
            yield row, None
            continue
        time = max(datetime.fromisoformat(line["time"]) for line in found)
        yield row, Paraphrase(clip_id, request.caption, tuple(good), captions.model, captions.instruction, time)


def paraphrase_command(arguments: argparse.Namespace) -> int:
    """Paraphrase the captions of a split."""
    captions = Captions(open_captions(arguments), arguments.model, arguments.variants)
    by_rules = captions.model == chat.GRAMMAR and not (arguments.base_url or os.environ.get("OPENAI_BASE_URL"))
    if by_rules and arguments.batch:
        raise UserError(f"--batch: {chat.GRAMMAR} is asked without a server; leave it out, or give --base-url")
    price = price_of(arguments)
    attempts = 1 if by_rules else ATTEMPTS  # rules say the same again
    if arguments.dry_run:
        describe(captions, attempts, price, arguments.batch)
        return 0
    require_own(captions.split, captions.model, arguments.replace)
    with Journal(captions.journal) as journal:
        answered = Answered(captions)
        budget = Budget(price, arguments.budget, answered)
        if arguments.batch:
            client = chat.connect(arguments.base_url, arguments.timeout, concurrency=1)
            batches = Batches(client, captions, journal, answered, budget, attempts, arguments.poll)
            asyncio.run(batches.all())
            stopped = batches.stopped
        else:
            model = (
                chat.Grammar()
                if by_rules
                else chat.ChatModel(arguments.base_url, arguments.timeout, arguments.concurrency)
            )
            total = sum(1 for _ in captions.distinct())
            with Progress(captions.split.name, total, budget.told) as progress:
                run = Run(model, journal, answered, budget, attempts, progress)
                asyncio.run(run.all(captions.distinct(), arguments.concurrency))
                stopped = run.stopped
        outcome = Outcome()
        rows = (row for _, row in judge(captions, answered, attempts, outcome) if row)
        shards.write_paraphrases(captions.journal.parent, rows)
    for line in told(outcome, captions, budget):
        logger.info(line)
    if stopped == INTERRUPTED:
        logger.info(stopped)
        return 130
    if stopped:
        raise UserError(stopped)
    return 1 if outcome.unanswered else 0


def open_captions(arguments: argparse.Namespace) -> StoredSplit:
    """The split whose captions are meant. A UserError where it can't have paraphrases."""
    store = Store.of(arguments.store)
    if store.is_remote:
        raise UserError(f"{store} is an object store: paraphrase the folder that it was uploaded from, and upload that")
    split = arguments.split or corpora.load(arguments.corpus).ROLES["train"]
    found = open_split(store, f"{arguments.corpus}/{split}")
    if found.manifest["clips_of"] or not found.manifest["queries_are_captions"]:
        raise UserError(f"{found.name} has queries, not captions of clips: it isn't trained on; name another --split")
    return found


def price_of(arguments: argparse.Namespace) -> Price | None:
    """What the model costs, if that is known. A UserError where there is a budget and it isn't."""
    price = Price(*arguments.price) if arguments.price else prices.price_of(arguments.model)
    if arguments.budget is not None and price is None:
        raise UserError(
            f"--budget {arguments.budget:g}: no price of {arguments.model!r} is known; "
            "give it as --price INPUT OUTPUT, in USD for a million tokens, or leave --budget out"
        )
    if price and arguments.batch:
        return Price(price.input * prices.BATCH_SHARE, price.output * prices.BATCH_SHARE)
    return price


def require_own(split: StoredSplit, model: str, replace: bool) -> None:
    """Raise UserError where a split has paraphrases that another model wrote, unless they are to be replaced."""
    there = written_by(split)
    if there and there[0] != model and not replace:
        raise UserError(
            f"{split.name} has paraphrases by {there[0]!r} already: give --replace to have those by {model!r} instead "
            "(what is in a journal is kept, and the table can be had again for nothing)"
        )


def written_by(split: StoredSplit) -> tuple[str, str] | None:
    """The model and the version of the instruction by which a split's paraphrases were written; None if it has none."""
    table = split.paraphrases_table()
    if not table:
        return None
    (row,) = table.slice(0, 1).to_pylist()
    return row["model"], row.get("instruction", "")


def describe(captions: Captions, attempts: int, price: Price | None, batch: bool) -> None:
    """Say what a run would ask, and what it would come to."""
    answered = Answered(captions)
    requests = todo = 0
    input_tokens = output_tokens = 0.0
    for request in captions.distinct():
        requests += 1
        if not is_done(request, answered.texts(request), attempts):
            todo += 1
            asked, answer = expected_tokens(request, answered)
            input_tokens, output_tokens = input_tokens + asked, output_tokens + answer
    num_captions = sum(1 for _ in captions.requests())
    basis = "as they were on average so far" if answered.number else "estimated: four characters each"
    lines = [
        f"{captions.split.name}: {num_captions:,} captions, {requests:,} different requests to {captions.model}",
        f"answered already: {requests - todo:,}; to be asked: {todo:,}",
        f"tokens ({basis}): {input_tokens:,.0f} of requests, {output_tokens:,.0f} of answers",
    ]
    if price:
        dollars = price.of(input_tokens, output_tokens)
        way = ", through the Batch API" if batch else f" ({dollars * prices.BATCH_SHARE:,.2f} with --batch)"
        source = f"prices of {prices.AS_OF} unless --price says otherwise; without what is asked again"
        lines.append(f"price: {dollars:,.2f} USD{way}; {source}")
    else:
        lines.append(f"price: unknown for {captions.model!r} (--price INPUT OUTPUT, in USD for a million tokens)")
    for line in lines:
        logger.info(line)


def told(outcome: Outcome, captions: Captions, budget: Budget) -> list[str]:
    """What a run has come to, in lines."""
    lines = [
        (
            f"{captions.split.name}: {outcome.paraphrases:,} paraphrases of {outcome.captions - outcome.without:,} of "
            f"{outcome.captions:,} captions, {outcome.complete:,} with all {captions.variants}; "
            f"{budget.answered.number:,} answers{budget.told()}"
        )
    ]
    lines += shares(outcome)
    if outcome.unanswered:
        lines.append(f"not answered yet: {outcome.unanswered:,} captions; the same command asks about them")
    if incomplete := outcome.captions - outcome.complete - outcome.unanswered:
        lines.append(f"for a person to look at: {incomplete:,} captions with too few paraphrases")
        lines += [f"  {line}" for line in outcome.incomplete]
        if incomplete > len(outcome.incomplete):
            lines.append(f"  ... all of them: python data/paraphrase.py review --store {captions.split.store}")
    return lines


def shares(outcome: Outcome) -> list[str]:
    """The share of sentences that pass each check."""
    if not outcome.sentences:
        return []
    lines = [f"of {outcome.sentences:,} sentences pass:"]
    for name in CHECKS:
        share = 1 - outcome.failed[name] / outcome.sentences
        lines.append(
            f"  {name:<26}{100 * share:6.1f} %" + ("  (the others are kept, and marked)" if name in MARKED else "")
        )
    return lines


def import_command(arguments: argparse.Namespace) -> int:
    """Take over variations that are published as a JSON list of {"path", "caption", "variations"}."""
    split, entries = open_captions(arguments), read_variations(arguments.file)
    model = arguments.model or IMPORTED
    require_own(split, model, arguments.replace)
    places: dict[tuple[str, str], tuple[str, str]] = {}  # by file and normalised caption
    for clip_id, captions in zip(split.clip_ids, split.captions, strict=True):
        name = PurePosixPath(clip_id.removeprefix(f"{split.name}/")).name
        places |= {(name, normalise(caption)): (clip_id, caption) for caption in captions}
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    unknown: list[str] = []
    failed: Counter[str] = Counter()
    for number, (path, caption, variations) in enumerate(entries, start=1):
        name = PureWindowsPath(path).name  # whatever way its strokes go
        if (place := places.get((name, normalise(caption)))) is None:
            unknown.append(
                f"{arguments.file}, entry {number}: {split.name} has no clip {name!r} with caption {caption!r}"
            )
            continue
        variants = answers.check(caption, [text for entry in variations if (text := answers.tidy(entry))])
        failed.update(name for variant in variants for name in variant.failed)
        found[place] = tuple(variant.text for variant in variants if variant.is_kept)
    rows = [Paraphrase(clip_id, caption, kept, model) for (clip_id, caption), kept in found.items() if kept]
    if not rows:
        raise UserError(f"{arguments.file}: none of its {len(unknown):,} entries is about a caption of {split.name}")
    shards.write_paraphrases(split.store.path / split.name, rows)
    total = sum(len(captions) for captions in split.captions)
    logger.info(
        f"{split.name}: {sum(len(row.variants) for row in rows):,} paraphrases of {len(rows):,} of {total:,} captions"
    )
    for name, count in failed.items():
        logger.info(f"  {count:,} fail: {name}" + (" (kept, and marked)" if name in MARKED else " (left out)"))
    if unknown:
        logger.info(f"{len(unknown):,} entries are about other captions:")
        for line in unknown[:SAID_INCOMPLETE]:
            logger.info(f"  {line}")
    return 0


def read_variations(path: Path) -> list[tuple[str, str, Sequence[str]]]:
    """The entries of a file of variations. A UserError names what is wrong."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} isn't JSON: {error}") from error
    if not isinstance(entries, list):
        raise UserError(f'{path} isn\'t a list of {{"path", "caption", "variations"}}')
    found: list[tuple[str, str, Sequence[str]]] = []
    for number, entry in enumerate(entries, start=1):
        match entry:
            case {"path": str(name), "caption": str(caption), "variations": list(variations)} if all(
                isinstance(text, str) for text in variations
            ):
                found.append((name, caption, variations))
            case _:
                raise UserError(
                    f'{path}, entry {number}: "path" and "caption" have to be texts, "variations" a list of texts'
                )
    return found


def review_command(arguments: argparse.Namespace) -> int:
    """Write a page with captions and paraphrases side by side, for each split that has any."""
    store = Store.of(arguments.store)
    pages = 0
    for name in store.splits():
        split = open_split(store, name)
        if split.manifest["clips_of"] or (arguments.split and arguments.split not in (name, name.partition("/")[2])):
            continue
        if (by := written_by(split)) is None:
            continue
        path = arguments.out or store.path / name / REVIEW_FILE
        write_review(split, *by, path)
        logger.info(f"{name}: {path}")
        pages += 1
        if arguments.out:
            break
    if not pages:
        raise UserError(f"{store} has no paraphrases" + (f" of {arguments.split}" if arguments.split else ""))
    return 0


def write_review(split: StoredSplit, model: str, instruction: str, path: Path) -> None:
    """Write a split's page: with what was left out where the journal knows, else what is in the table."""
    number = instruction.rpartition("/")[2]
    captions = Captions(split, model, int(number) if number.isdigit() else DEFAULT_VARIANTS)
    answered = Answered(captions)
    if answered.number:
        rows: Iterator[Row] = (row for row, _ in judge(captions, answered, 1, Outcome()))
    else:
        rows = table_rows(captions, split.paraphrases())
    write_page(path, split.name, model, instruction, rows)


def table_rows(captions: Captions, table: dict[tuple[str, str], list[str]]) -> Iterator[Row]:
    """Each caption with its paraphrases in the table."""
    for clip_id, request in captions.requests():
        found = table.get((clip_id, caption_hash(request.caption)), [])
        variants = tuple(answers.check(request.caption, found))
        yield Row(clip_id, request.caption, request.tags, variants, "" if found else "no paraphrases")


def add_split(parser: argparse.ArgumentParser) -> None:
    """The arguments by which a split is named, and what is written in place of what is there."""
    parser.add_argument("--split", help="of the corpus (default: the one to train on)")
    parser.add_argument("--replace", action="store_true", help="also where another model's paraphrases are there")


def add_paraphrase(parser: argparse.ArgumentParser) -> None:
    """The arguments of paraphrasing."""
    parser.add_argument("corpus", help=f"one of: {', '.join(corpora.names())}; or one of: {', '.join(COMMANDS)}")
    add_split(parser)
    parser.add_argument("--model", default="gpt-3.5-turbo", help="(default: %(default)s, the paper's)")
    parser.add_argument(
        "--base-url", metavar="URL", help="of a server other than OpenAI's, as http://localhost:8000/v1"
    )
    parser.add_argument(
        "--variants", type=positive, default=DEFAULT_VARIANTS, help="paraphrases of a caption (default: %(default)s)"
    )
    parser.add_argument("--concurrency", type=positive, default=32, help="requests at a time (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=above_zero, default=60.0, metavar="SECONDS", help="for an answer (default: %(default)g)"
    )
    parser.add_argument("--budget", type=above_zero, metavar="USD", help="for this split and model, all runs together")
    parser.add_argument(
        "--price",
        type=above_zero,
        nargs=2,
        metavar=("INPUT", "OUTPUT"),
        help="of the model, in USD for a million tokens",
    )
    parser.add_argument("--batch", action="store_true", help="ask through the Batch API: half the price, within a day")
    parser.add_argument(
        "--poll",
        type=above_zero,
        default=60.0,
        metavar="SECONDS",
        help="between two looks at a batch (default: %(default)g)",
    )
    parser.add_argument("--dry-run", action="store_true", help="say requests, tokens and price; ask nothing")


def add_import(parser: argparse.ArgumentParser) -> None:
    """The arguments of import."""
    parser.add_argument("file", type=Path, help='a JSON list of {"path", "caption", "variations"}')
    parser.add_argument("--corpus", default="clotho", help="(default: %(default)s)")
    add_split(parser)
    parser.add_argument("--model", help="what wrote them, for the record")


def add_review(parser: argparse.ArgumentParser) -> None:
    """The arguments of review."""
    parser.add_argument("--split", help="(default: all that have paraphrases)")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"(default: {REVIEW_FILE} beside the split)")


def above_zero(text: str) -> float:
    """A number above 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} isn't a number above 0")
    return value


COMMANDS: dict[str, tuple[commands.Run, commands.AddArguments]] = {
    "import": (import_command, add_import),
    "review": (review_command, add_review),
}


def main() -> int | None:
    """The command."""
    try:
        return commands.run_one("paraphrase.py", __doc__, (paraphrase_command, add_paraphrase), COMMANDS)
    except OSError as error:
        problem = f"{error.filename or 'the store'} can't be used: {error.strerror or error}"
        raise UserError(f"{problem}; what was answered is kept, and the same command goes on") from error


if __name__ == "__main__":
    run_command(main)
