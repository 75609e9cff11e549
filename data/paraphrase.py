"""Write paraphrases of a split's captions with a chat model, for data augmentation in fine-tuning.

The API key is read from OPENAI_API_KEY. Every answer is kept in a journal: if the
command is interrupted, re-run it to resume.

Examples:
    python data/paraphrase.py clotho --store store --dry-run
    python data/paraphrase.py clotho --store store --model llama3 --base-url http://localhost/v1

Guide: docs/paraphrases.md
"""

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data import corpora
from data.errors import UserError, parse_positive_int
from data.paraphrasing import grammar, prices
from data.paraphrasing.answer_parsing import MARKING_CHECKS
from data.paraphrasing.job import (
    INTERRUPTED,
    MAX_REQUESTS_PER_BATCH,
    AnswerLog,
    Budget,
    ParaphraseJob,
    estimate_tokens,
    is_done,
    journal_path,
)
from data.paraphrasing.journal import Journal, lock_journal
from data.paraphrasing.outcome import DEFAULT_VARIANTS, MAX_LOGGED_INCOMPLETE, format_summary, write_review, write_table
from data.paraphrasing.prices import Price
from data.paraphrasing.published import match_entries, read_variations
from data.runtime import command_line
from data.runtime.options import Command, flag, option, positional, run_command
from data.schema import Paraphrase
from data.store import split_writer
from data.store.storage import Store, StoreOptions
from data.store.stored_split import StoredSplit, open_split

if TYPE_CHECKING:
    from data.paraphrasing.chat_client import ParaphraseModel


logger = logging.getLogger("chorale.paraphrase")

MAX_ATTEMPTS = 3
"""Maximum number of requests per caption, until enough sentences of its answers are kept."""

DEFAULT_CONCURRENCY = 32

DEFAULT_TIMEOUT_S = 60.0

DEFAULT_POLL_S = 60.0

REVIEW_FILE = "paraphrases.html"

IMPORTED = "imported"


def parse_batch_size(text: str) -> int:
    """Parse a number of requests, at least 1 and at most the Batch API's maximum, for argparse."""
    if (value := parse_positive_int(text)) > MAX_REQUESTS_PER_BATCH:
        raise argparse.ArgumentTypeError(f"{text}: the API takes {MAX_REQUESTS_PER_BATCH:,} at most")
    return value


def parse_positive_number(text: str) -> float:
    """Parse a finite number above 0, for argparse. Raises argparse.ArgumentTypeError for any other text."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} isn't a number above 0")
    return value


@dataclass(frozen=True, kw_only=True)
class CaptionOptions(StoreOptions):
    """Command-line options that name a split, and say whether its paraphrases may be replaced."""

    corpus: str
    split: str | None = option("split of the corpus (default: its training split)", None)
    replace: bool = option("overwrite paraphrases by another model", False)


@dataclass(frozen=True, kw_only=True)
class AskOptions(CaptionOptions):
    """Command-line options of the default command, which asks a model for paraphrases."""

    corpus: str = positional(f"{', '.join(corpora.list_names())}")
    model: str = option(
        "model, or grammar for the rule-based paraphraser (default: the paper's, %(default)s)", "gpt-3.5-turbo"
    )
    base_url: str | None = option(
        "server other than OpenAI's, such as http://localhost:8000/v1", None, metavar="URL")  # fmt: skip
    variants: int = option("paraphrases per caption", DEFAULT_VARIANTS, type=parse_positive_int)
    concurrency: int | None = option(
        f"concurrent requests (default: {DEFAULT_CONCURRENCY})", None, type=parse_positive_int)  # fmt: skip
    timeout: float | None = option(
        f"seconds to wait for answers (default: {DEFAULT_TIMEOUT_S:g})", None, type=parse_positive_number)  # fmt: skip
    budget: float | None = option(
        "maximum cost of this split and model, over all runs, in USD", None, type=parse_positive_number)  # fmt: skip
    price: tuple[float, float] | None = option(
        "price of the model in USD per million tokens", None, type=parse_positive_number, nargs=2,
        metavar=("INPUT", "OUTPUT"))  # fmt: skip
    batch: bool = option("use the Batch API: half the price, answers within a day", False)
    batch_size: int | None = option(
        f"requests per batch, for accounts with lower limits (default: {MAX_REQUESTS_PER_BATCH:,})",
        None, type=parse_batch_size)  # fmt: skip
    poll: float | None = option(
        f"interval between status requests for a batch (default: {DEFAULT_POLL_S:g})", None, type=parse_positive_number,
        metavar="SECONDS")  # fmt: skip
    dry_run: bool = option("print the number of requests, tokens and the price, then exit", False)


@dataclass(frozen=True, kw_only=True)
class ImportOptions(CaptionOptions):
    """Command-line options of the command `import`, which reads published paraphrases from a file."""

    file: Path = positional('JSON list of {"path", "caption", "variations"}')
    corpus: str = option("corpus that the file belongs to", "clotho")
    model: str | None = option("model that wrote them, to be recorded", None)


@dataclass(frozen=True, kw_only=True)
class ReviewOptions(StoreOptions):
    """Command-line options of the command `review`, which writes the review page."""

    split: str | None = option("split to review (default: every split with paraphrases)", None)
    out: Path | None = option(f"file to write (default: {REVIEW_FILE} beside the split)", None, metavar="FILE")


def paraphrase_command(options: AskOptions) -> int:
    """Paraphrase the captions of a split; the exit status is 1 if captions are unanswered, 130 after Ctrl-C."""
    by_rules = options.model == grammar.NAME
    refuse_ignored_options(options, by_rules)
    job = ParaphraseJob(open_caption_split(options), options.model, options.variants)
    price = find_price(options)
    attempts = 1 if by_rules else MAX_ATTEMPTS  # rules always write the same sentences
    if options.dry_run:
        print_estimate(job, attempts, price, options.batch)
        return 0
    may_be_incomplete = require_same_model(job.split, job.model, job.instruction, options.replace)
    with Journal(job.journal) as journal:
        answer_log = AnswerLog(job)
        budget = Budget(price, options.budget, answer_log, options.batch)
        if options.batch:
            stop_reason = ask_in_batches(options, job, journal, answer_log, budget)
        else:
            from data.paraphrasing.async_runner import ParaphraseProgress, ParaphraseRun

            refuse_open_batch(job)
            model = make_model(options, by_rules)
            total = sum(1 for _ in job.distinct_requests())
            with ParaphraseProgress(job.split.name, total, budget.format_spent) as progress:
                run = ParaphraseRun(model, journal, answer_log, budget, attempts, progress)
                run.ask_all(job.distinct_requests(), options.concurrency or DEFAULT_CONCURRENCY)
            stop_reason = run.stopped
        outcome = write_table(job, answer_log, attempts, may_be_incomplete)
    for line in format_summary(outcome, job, budget):
        logger.info(line)
    if stop_reason == INTERRUPTED:
        logger.info(stop_reason)
        return 130
    if stop_reason:
        raise UserError(stop_reason)
    return 1 if outcome.unanswered else 0


def refuse_ignored_options(options: AskOptions, by_rules: bool) -> None:
    """Raise UserError for an option that has no effect with the rules (`by_rules`), or with or without --batch."""
    if by_rules:
        reason = f"{grammar.NAME} needs no server and costs nothing"
        ignored = ["batch", "batch_size", "base_url", "budget", "concurrency", "poll", "price", "timeout"]
    elif options.batch:
        reason, ignored = "with --batch the server sets it", ["concurrency"]
    else:
        reason, ignored = "it has no effect without --batch", ["batch_size", "poll"]
    for name in ignored:
        if getattr(options, name):
            raise UserError(f"{flag(name)}: {reason}; remove it")


def make_model(options: AskOptions, by_rules: bool) -> "ParaphraseModel":
    """Return the model to ask: the rule-based paraphraser if `by_rules`, otherwise a server's chat model."""
    from data.paraphrasing import chat_client  # the client of a server takes half a second to import

    if by_rules:
        return chat_client.RuleBasedParaphraser()
    concurrency = options.concurrency or DEFAULT_CONCURRENCY
    return chat_client.ChatModel(options.base_url, options.timeout or DEFAULT_TIMEOUT_S, concurrency)


def refuse_open_batch(job: ParaphraseJob) -> None:
    """Raise UserError if an uncollected batch asks about the same captions, which would be paid for twice."""
    from data.paraphrasing.batch_api import find_open_batches

    if open_batches := find_open_batches(job):
        batches = ", ".join(batch_id or f"a batch of {file_id}" for file_id, batch_id in open_batches.items())
        raise UserError(
            f"{job.split.name} was submitted to {job.model} and isn't collected ({batches}): "
            "re-run the command with --batch to collect it"
        )


def ask_in_batches(
    options: AskOptions, job: ParaphraseJob, journal: Journal, answer_log: AnswerLog, budget: Budget
) -> str:
    """Ask about all captions without answers by the Batch API, and wait. Return why some weren't asked about, or ''."""
    from data.paraphrasing import chat_client
    from data.paraphrasing.batch_api import BatchRun

    timeout_s = options.timeout or DEFAULT_TIMEOUT_S
    client = chat_client.connect(
        options.base_url, timeout_s, chat_client.LimitedClient(chat_client.AdaptiveConcurrencyLimiter(1), timeout_s)
    )
    run = BatchRun(
        client,
        job,
        journal,
        answer_log,
        budget,
        MAX_ATTEMPTS,
        poll_s=options.poll or DEFAULT_POLL_S,
        batch_size=options.batch_size or MAX_REQUESTS_PER_BATCH,
    )
    asyncio.run(run.ask_all())
    return run.stopped


def open_caption_split(options: CaptionOptions) -> StoredSplit:
    """Return the split that the options name. Raises UserError if it cannot have paraphrases."""
    store = Store.of(options.store)
    if store.is_remote:
        raise UserError(f"{store} is an object store: paraphrase a local copy, and upload it again")
    split = options.split or corpora.load(options.corpus).ROLES["train"]
    caption_split = open_split(store, f"{options.corpus}/{split}")
    if caption_split.manifest.clips_of or not caption_split.manifest.queries_are_captions:
        raise UserError(f"{caption_split.name} has queries, not captions of clips: choose another --split")
    return caption_split


def find_price(options: AskOptions) -> Price | None:
    """Return the price of the model; None if it is unknown. Raises UserError if it is unknown and a budget is given."""
    price = Price(*options.price) if options.price else prices.find_price(options.model)
    if options.budget is not None and price is None:
        raise UserError(
            f"--budget {options.budget:g}: no price of {options.model!r} is known; "
            "give it as --price INPUT OUTPUT, in USD per million tokens, or remove --budget"
        )
    return price


def require_same_model(split: StoredSplit, model: str, instruction: str, replace: bool) -> bool:
    """Return True if a split has no paraphrases or all are by this model and instruction; False if they are by another
    and `replace` allows to overwrite them. Raises UserError if `replace` is False in that case.
    """
    author = find_author(split)
    if not author or author == (model, instruction) or author == (model, None):
        return True
    if not replace:
        restored = "rebuilt from the journal for free" if author[1] else "imported again"
        present, requested = " ".join(filter(None, author)), f"{model} {instruction}".rstrip()
        raise UserError(f"{split.name} already has paraphrases by {present!r}: pass --replace to overwrite them "
                        f"with those by {requested!r} (the others can be {restored})")  # fmt: skip
    return False


def find_author(split: StoredSplit) -> tuple[str, str | None] | None:
    """Return the model and the instruction's version that wrote a split's paraphrases; None if there are none. The
    version is '' if it is unknown, and None in tables written before versions were recorded.
    """
    if not (table := split.read_paraphrases_table()):
        return None
    (row,) = table.slice(0, 1).to_pylist()
    return row["model"], row.get("instruction")


def print_estimate(job: ParaphraseJob, attempts: int, price: Price | None, batch: bool) -> None:
    """Log the number of requests and tokens, and the cost, of a run that hasn't started; with `batch`, the cost of the
    Batch API. A caption is asked about up to `attempts` times.
    """
    answer_log = AnswerLog(job)
    num_requests = num_remaining = 0
    input_tokens = output_tokens = 0.0
    for request in job.distinct_requests():
        num_requests += 1
        if not is_done(request, answer_log.read_texts(request), attempts):
            num_remaining += 1
            request_tokens, answer_tokens = estimate_tokens(request, answer_log)
            input_tokens, output_tokens = input_tokens + request_tokens, output_tokens + answer_tokens
    num_captions = sum(1 for _ in job.iter_requests())
    basis = "average of the answers so far" if answer_log.tokens.answers else "estimated: four characters each"
    lines = [
        f"{job.split.name}: {num_captions:,} captions, {num_requests:,} distinct requests to {job.model}",
        f"already answered: {num_requests - num_remaining:,}; to be sent: {num_remaining:,}",
        f"tokens ({basis}): {input_tokens:,.0f} of requests, {output_tokens:,.0f} of answers",
    ]
    if price:
        dollars = price.compute_cost(input_tokens, output_tokens)
        batch_dollars = dollars * prices.BATCH_PRICE_SHARE
        mode = f" ({batch_dollars:,.2f} with --batch)"
        if batch:
            dollars, mode = batch_dollars, ", through the Batch API"
        source = f"prices of {prices.AS_OF} unless --price is given; without repeated requests"
        lines.append(f"price: {dollars:,.2f} USD{mode}; {source}")
    else:
        lines.append(f"price: unknown for {job.model!r} (--price INPUT OUTPUT, in USD per million tokens)")
    for line in lines:
        logger.info(line)


def import_command(options: ImportOptions) -> int:
    """Import published paraphrases from a JSON list of {"path", "caption", "variations"}.

    Examples:
        python data/paraphrase.py import variations.json --store store
        python data/paraphrase.py import variations.json --corpus audiocaps --store store
    """
    split, entries = open_caption_split(options), read_variations(options.file)
    model = options.model or IMPORTED
    require_same_model(split, model, "", options.replace)
    imported = match_entries(split, entries)
    rows = [
        Paraphrase(*clip_and_caption, texts, model) for clip_and_caption, texts in imported.variants.items() if texts
    ]
    if not rows:
        reason = (
            f"its {len(imported.unknown):,} entries are about other captions"
            if imported.unknown
            else "all of them fail the checks"
        )
        raise UserError(f"{options.file}: no paraphrase of a caption of {split.name}: {reason if entries else 'empty'}")
    with lock_journal(journal_path(split)):
        split_writer.write_paraphrases(split.store.path / split.name, rows)
    total = sum(len(captions) for captions in split.captions)
    logger.info(
        f"{split.name}: {sum(len(row.variants) for row in rows):,} paraphrases of {len(rows):,} of {total:,} captions"
    )
    for name, count in imported.failed.items():
        logger.info(f"  {count:,} fail: {name}" + (" (kept, and marked)" if name in MARKING_CHECKS else " (not kept)"))
    if imported.unknown:
        logger.info(f"{len(imported.unknown):,} entries are about other captions:")
        for line in imported.unknown[:MAX_LOGGED_INCOMPLETE]:
            logger.info(f"  {options.file}, {line}")
    return 0


def review_command(options: ReviewOptions) -> int:
    """Write an HTML page with captions beside their paraphrases, for each split with paraphrases.

    Examples:
        python data/paraphrase.py review --store store
        python data/paraphrase.py review --store store --split clotho/development --out review.html
    """
    store = Store.of(options.store)
    reviewable: list[tuple[StoredSplit, str, str]] = []
    for name in store.list_splits():
        split = open_split(store, name)
        if split.manifest.clips_of or (options.split and options.split not in (name, split.manifest.split)):
            continue
        if author := find_author(split):
            reviewable.append((split, author[0], author[1] or ""))
    if not reviewable:
        raise UserError(f"{store} has no paraphrases" + (f" of {options.split}" if options.split else ""))
    if options.out and len(reviewable) > 1:
        names = ", ".join(split.name for split, *_ in reviewable)
        raise UserError(f"--out {options.out}: one page can't show several splits ({names}): choose one with --split")
    for split, model, instruction in reviewable:
        path = options.out or store.path / split.name / REVIEW_FILE
        write_review(split, model, instruction, path)
        logger.info(f"{split.name}: {path}")
    return 0


COMMANDS: dict[str, Command[Any]] = {
    "import": Command(ImportOptions, import_command),
    "review": Command(ReviewOptions, review_command),
}


@command_line.command
def main(argv: Sequence[str] | None = None) -> int | None:
    try:
        return run_command(argv, "paraphrase.py", __doc__, Command(AskOptions, paraphrase_command), COMMANDS)
    except OSError as error:
        problem = f"{error.filename or 'the store'} can't be used: {error.strerror or error}"
        raise UserError(f"{problem}; answers so far are kept: re-run the same command to resume") from error


if __name__ == "__main__":
    sys.exit(main())
