"""Results of a paraphrasing run: the split's table, the summary, and the review page."""

import itertools
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from data.captions import hash_caption
from data.paraphrasing import answer_parsing
from data.paraphrasing.answer_parsing import CHECKS, MARKING_CHECKS
from data.paraphrasing.job import AnswerLog, Budget, ParaphraseJob
from data.paraphrasing.review_page import ReviewRow, write_page
from data.schema import Paraphrase
from data.store import split_writer
from data.store.stored_split import StoredSplit

logger = logging.getLogger("chorale.paraphrase")

DEFAULT_VARIANTS = 5
"""Number of paraphrases per caption, as in the paper."""

MAX_LOGGED_INCOMPLETE = 20
"""Maximum number of captions without all their paraphrases that are logged; the review page lists all."""


@dataclass
class ParaphraseOutcome:
    """Result of paraphrasing a split: the numbers of its captions with as many paraphrases as requested, with fewer,
    and with none, and the number of sentences that were dropped by each check.
    """

    captions: int = 0
    complete: int = 0
    without: int = 0  # captions without any paraphrase
    unanswered: int = 0
    paraphrases: int = 0
    sentences: int = 0
    failed: Counter[str] = field(default_factory=Counter)  # failed sentences by check
    incomplete: list[str] = field(default_factory=list)  # the first captions with too few paraphrases


def filter_paraphrases(
    job: ParaphraseJob, answer_log: AnswerLog, attempts: int, outcome: ParaphraseOutcome
) -> Iterator[tuple[ReviewRow, Paraphrase | None]]:
    """Check the answers about each caption of a split. Yield pairs: the caption's row of the review page, and its row
    of the table of paraphrases, which is None if it has no paraphrase. Each caption and its sentences are added to the
    counts in `outcome`. A caption with too few paraphrases counts as unanswered until it has `attempts` answers.
    """
    for clip_id, request in job.iter_requests():
        lines = answer_log.read_lines(request)
        variants = answer_parsing.check_answers(request.caption, [line["answer"] for line in lines])
        used = [index for index, variant in enumerate(variants) if variant.is_kept][: job.variants]
        paraphrases = [variants[index].text for index in used]
        problem, is_unanswered = "", len(paraphrases) < job.variants and len(lines) < attempts
        if len(paraphrases) < job.variants:
            reasons = {
                line["problem"] or ("refused" if answer_parsing.is_refused(line["answer"]) else "") for line in lines
            }
            reason = ", ".join(sorted(reasons - {""})) or ("not answered yet" if is_unanswered else "")
            problem = f"{len(paraphrases)} of {job.variants} paraphrases" + (f": {reason}" if reason else "")
        outcome.captions += 1
        outcome.complete += not problem
        outcome.without += not paraphrases
        outcome.unanswered += is_unanswered
        outcome.paraphrases += len(paraphrases)
        outcome.sentences += len(variants)
        outcome.failed.update(name for variant in variants for name in variant.failed)
        if problem and not is_unanswered and len(outcome.incomplete) < MAX_LOGGED_INCOMPLETE:
            outcome.incomplete.append(f"{clip_id}: {request.caption!r}: {problem}")
        row = ReviewRow(clip_id, request.caption, request.tags, tuple(variants), used, problem)
        if not paraphrases:
            yield row, None
            continue
        time = max(datetime.fromisoformat(line["time"]) for line in lines)
        yield row, Paraphrase(clip_id, request.caption, tuple(paraphrases), job.model, job.instruction, time)


def write_table(job: ParaphraseJob, answer_log: AnswerLog, attempts: int, may_be_incomplete: bool) -> ParaphraseOutcome:
    """Write the split's table of paraphrases from the answers so far, and return the counts. A caption counts as
    answered after `attempts` answers or with all its paraphrases. The existing table is kept if no caption has a
    paraphrase, or if captions are unanswered and `may_be_incomplete` is False.
    """
    complete = may_be_incomplete or all(answer_log.is_done(request, attempts) for request in job.distinct_requests())
    outcome = ParaphraseOutcome()
    rows = (row for _, row in filter_paraphrases(job, answer_log, attempts, outcome) if row)
    first = next(rows, None)
    if first and complete:
        split_writer.write_paraphrases(job.journal.parent, itertools.chain([first], rows))
        return outcome
    for _ in rows:  # count the captions in the outcome
        pass
    if not complete:
        logger.info("the existing table is kept until all captions are answered")
    elif job.split.read_paraphrases_table():
        logger.info("the existing table is kept, since no caption has a paraphrase")
    return outcome


def format_summary(outcome: ParaphraseOutcome, job: ParaphraseJob, budget: Budget) -> list[str]:
    """Return lines of text that summarise a paraphrasing: how many captions have all, some or none of the requested
    paraphrases, and what they have cost so far.
    """
    lines = [
        (
            f"{job.split.name}: {outcome.paraphrases:,} paraphrases of {outcome.captions - outcome.without:,} of "
            f"{outcome.captions:,} captions, {outcome.complete:,} with all {job.variants}; "
            f"{budget.answer_log.tokens.answers:,} answers{budget.format_spent()}"
        )
    ]
    lines += compute_check_shares(outcome)
    if outcome.unanswered:
        lines.append(f"not answered yet: {outcome.unanswered:,} captions; re-run the same command to ask about them")
    if incomplete := outcome.captions - outcome.complete - outcome.unanswered:
        lines.append(f"to review: {incomplete:,} captions with too few paraphrases")
        lines += [f"  {line}" for line in outcome.incomplete]
        if incomplete > len(outcome.incomplete):
            lines.append(f"  to see all of them: python data/paraphrase.py review --store {job.split.store}")
    return lines


def compute_check_shares(outcome: ParaphraseOutcome) -> list[str]:
    """Return lines of text with the percentage of sentences that pass each check; [] if there are no sentences."""
    if not outcome.sentences:
        return []
    lines = [f"of {outcome.sentences:,} sentences pass:"]
    for name in CHECKS:
        share = 1 - outcome.failed[name] / outcome.sentences
        lines.append(
            f"  {name:<26}{100 * share:6.1f} %"
            + ("  (the others are kept, and marked)" if name in MARKING_CHECKS else "")
        )
    return lines


def write_review(split: StoredSplit, model: str, instruction: str, path: Path) -> None:
    """Write the review page of a split's paraphrases as HTML. It includes rejected sentences if the journal has
    answers by this model to this instruction; otherwise it shows the table of paraphrases.
    """
    number = instruction.rpartition("/")[2]
    job = ParaphraseJob(split, model, int(number) if number.isdigit() else DEFAULT_VARIANTS)
    answer_log = AnswerLog(job)
    if answer_log.tokens.answers and job.instruction == instruction:
        rows: Iterator[ReviewRow] = (row for row, _ in filter_paraphrases(job, answer_log, 1, ParaphraseOutcome()))
    else:
        rows = iter_table_rows(job, split.read_paraphrases())
    write_page(path, split.name, model, instruction, rows)


def iter_table_rows(job: ParaphraseJob, table: dict[tuple[str, str], list[str]]) -> Iterator[ReviewRow]:
    """Yield a row of the review page for each caption of the job's split. `table` has the paraphrases by clip id and
    caption hash (`data.captions.hash_caption`).
    """
    for clip_id, request in job.iter_requests():
        paraphrases = table.get((clip_id, hash_caption(request.caption)), [])
        variants = tuple(answer_parsing.check_sentences(request.caption, paraphrases))
        problem = "" if paraphrases else "no paraphrases"
        yield ReviewRow(clip_id, request.caption, request.tags, variants, range(len(variants)), problem)
