"""Paraphrasing job of a split: requests about its captions, answers so far, and the budget."""

import contextlib
import hashlib
import json
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from data.captions import has_word
from data.paraphrasing import answer_parsing, grammar
from data.paraphrasing.journal import Line, read_line, read_lines
from data.paraphrasing.prices import BATCH_PRICE_SHARE, Price
from data.store.stored_split import StoredSplit

MAX_REQUESTS_PER_BATCH = 50_000
"""Maximum number of requests in a batch that OpenAI accepts."""

INTERRUPTED = "interrupted; re-run the same command to resume"

INSTRUCTION = (
    "I will give a description of an audio recording and tags associated with the audio recording. Generate {number} "
    "audio captions describing the sound event. Each audio caption should be one sentence with less than 20 words. Use "
    "grammatical subject-verb-object sentences. Do not include names of cities, countries, and persons. Do not include "
    'the time. Do not include recording device names. Do not write introductions or explanations. Do not use "heard" '
    'or "recorded". Start each output sentence with its index.'
)
"""Instruction from Table 1 of Primus, Koutini and Widmer (DCASE 2023), where {number} is 5."""

INSTRUCTION_VERSION = "dcase2023"
"""Version of INSTRUCTION; change it whenever the text changes."""

JOURNAL_FILE = "paraphrases.jsonl"

TOKENS_PER_SENTENCE = 18
"""Assumed number of tokens of a sentence with its index, until the journal contains counts by the model."""


@dataclass(frozen=True)
class Request:
    """Request to a model for paraphrases of one caption. Clips with the same caption and tags share a request."""

    model: str
    instruction: str  # version of the instruction and number of sentences, 'dcase2023/5'
    caption: str
    tags: tuple[str, ...]

    @cached_property
    def key(self) -> str:
        """32 hexadecimal digits that identify the request."""
        # json.dumps escapes lone surrogates, which a caption may contain and UTF-8 can't encode.
        parts = json.dumps([self.model, self.instruction, self.caption, self.tags])
        return hashlib.sha256(parts.encode()).hexdigest()[:32]

    @property
    def number(self) -> int:
        """Number of sentences to ask for."""
        return int(self.instruction.rpartition("/")[2])

    @property
    def prompt(self) -> str:
        """Text to send to the model: the instruction, then the caption with the clip's keywords in brackets."""
        return f"{INSTRUCTION.format(number=self.number)}\n\n{self.caption} [{', '.join(self.tags)}]"

    @property
    def body(self) -> dict[str, Any]:
        """Body of the HTTP request, in the format of OpenAI's chat completions."""
        return {"model": self.model, "messages": [{"role": "user", "content": self.prompt}]}


@dataclass(frozen=True)
class Answer:
    """Model's answer to a request, with the numbers of tokens if the server reports them. `problem` is 'refused',
    'empty', 'only reasoning' or 'cut short' if the text is missing or incomplete, otherwise ''.
    """

    text: str
    problem: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None


def journal_path(split: StoredSplit) -> Path:
    """Return the path of a split's journal, the file of all answers about its captions."""
    return split.store.path / split.name / JOURNAL_FILE


@dataclass(frozen=True)
class ParaphraseJob:
    """Job of writing `variants` paraphrases of each caption of a split with a model."""

    split: StoredSplit
    model: str
    variants: int

    @property
    def instruction(self) -> str:
        """Version of the instruction (or of the rules, for the rule-based paraphraser) and the number of
        sentences to ask for, such as 'dcase2023/5'.
        """
        version = grammar.VERSION if self.model == grammar.NAME else INSTRUCTION_VERSION
        return f"{version}/{self.variants}"

    @property
    def journal(self) -> Path:
        """Path of the journal of answers."""
        return journal_path(self.split)

    def iter_requests(self) -> Iterator[tuple[str, Request]]:
        """Yield pairs of a clip's id and the request about one of its captions, for all captions that have a word, in
        the order of the shards. No audio is read.
        """
        for number in range(len(self.split.clips_manifest.shards)):
            clips = self.split.read_shard(number).select(["clip_id", "captions", "keywords"])
            for batch in clips.to_batches():
                for clip in batch.to_pylist():
                    for caption in filter(has_word, clip["captions"]):
                        yield clip["clip_id"], Request(self.model, self.instruction, caption, tuple(clip["keywords"]))

    def distinct_requests(self) -> Iterator[Request]:
        """Yield every request once, although several clips may share it."""
        seen = set()
        for _, request in self.iter_requests():
            if (key := bytes.fromhex(request.key)) not in seen:
                seen.add(key)
                yield request


@dataclass
class TokenCounts:
    """Total numbers of tokens in requests and in their answers, and the number of answers."""

    input: int = 0
    output: int = 0
    answers: int = 0

    def count_line(self, line: Line) -> None:
        """Add an answer, given as a line of the journal, to the totals."""
        self.input += line["input_tokens"]
        self.output += line["output_tokens"]
        self.answers += 1


class AnswerLog:
    """Index of a job's answers in the journal, that is of its model's answers to its instruction: their positions
    in the file by request, and their token counts.

    For the budget, the tokens of all answers by the model are counted as well, including those to other instructions.
    """

    def __init__(self, job: ParaphraseJob) -> None:
        self.job = job
        self.offsets: dict[bytes, tuple[int, ...]] = {}
        self.tokens = TokenCounts()
        self.paid, self.paid_in_batches = TokenCounts(), TokenCounts()
        for offset, line in read_lines(job.journal):
            self.add_line(offset, line)

    def add_line(self, offset: int, line: Line) -> None:
        """Add an answer, given as a line of the journal and its offset in the file in bytes. An answer by another model
        than the job's is ignored; one to another instruction is only counted for the budget.
        """
        if line["model"] != self.job.model:
            return
        (self.paid_in_batches if "batch" in line else self.paid).count_line(line)
        if line["instruction"] == self.job.instruction:
            key = bytes.fromhex(line["key"])
            self.offsets[key] = (*self.offsets.get(key, ()), offset)
            self.tokens.count_line(line)

    def read_lines(self, request: Request) -> list[Line]:
        """Return a request's answers so far, as lines of the journal; [] if there are none."""
        offsets = self.offsets.get(bytes.fromhex(request.key), ())
        return [read_line(self.file, offset) for offset in offsets]

    @cached_property
    def file(self) -> BinaryIO:
        """Journal opened for reading; it is closed with this object."""
        file = self.job.journal.open("rb")
        weakref.finalize(self, file.close)
        return file

    def read_texts(self, request: Request) -> list[str]:
        """Return the texts of a request's answers so far."""
        return [line["answer"] for line in self.read_lines(request)]

    def is_done(self, request: Request, attempts: int) -> bool:
        """Return whether a request needs no further answers: those in the journal are enough, or as many as
        `attempts`.
        """
        return is_done(request, self.read_texts(request), attempts)


def is_done(request: Request, texts: Sequence[str], attempts: int) -> bool:
    """Return whether a request needs no further answers: `texts`, its answers so far, contain enough paraphrases,
    or are as many as `attempts`.
    """
    return (
        len(texts) >= attempts
        or len(answer_parsing.choose_paraphrases(request.caption, texts, request.number)) >= request.number
    )


def to_line(request: Request, answer: Answer) -> Line:
    """Return an answer as a line of the journal, with the current time. Tokens that the server doesn't report are
    estimated.
    """
    reported = answer.input_tokens, answer.output_tokens
    return {
        "key": request.key,
        "model": request.model,
        "instruction": request.instruction,
        "answer": answer.text,
        "problem": answer.problem,
        "input_tokens": count_tokens([request.prompt]) if reported[0] is None else reported[0],
        "output_tokens": count_tokens([answer.text]) if reported[1] is None else reported[1],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@dataclass
class Budget:
    """Budget in USD for the paraphrases of one split by one model, over all runs. If `limit_usd` is None, it is
    unlimited; if `price` is None, costs count as 0.
    """

    price: Price | None
    limit_usd: float | None
    answer_log: AnswerLog
    in_batches: bool = False  # True if this run asks through the Batch API
    running: float = 0.0  # USD reserved for requests in progress

    def spent(self) -> float:
        """Return the cost in USD of all answers so far; 0 if the price is unknown."""
        if not self.price:
            return 0.0
        single, batched = self.answer_log.paid, self.answer_log.paid_in_batches
        return self.price.compute_cost(single.input, single.output) + BATCH_PRICE_SHARE * self.price.compute_cost(
            batched.input, batched.output
        )

    def format_spent(self) -> str:
        """Return the cost so far as text to append to a line, such as ', 0.12 USD'; '' if the price is unknown."""
        return f", {self.spent():.2f} USD" if self.price else ""

    def exhausted_reason(self) -> str:
        """Return the message that says that the budget is spent."""
        return f"the budget of {self.limit_usd:g} USD is spent ({self.spent():.2f})"

    def allows(self, usd: float) -> bool:
        """Return whether the budget allows spending another `usd`, in addition to the cost of all answers and
        of the requests in progress.
        """
        return self.limit_usd is None or self.spent() + self.running + usd <= self.limit_usd

    def estimate(self, request: Request) -> float:
        """Return the estimated cost in USD of one request and its answer; 0 if the price is unknown."""
        if not self.price:
            return 0.0
        return self.price.compute_cost(*estimate_tokens(request, self.answer_log)) * (
            BATCH_PRICE_SHARE if self.in_batches else 1
        )

    @contextlib.contextmanager
    def reserve(self, request: Request) -> Iterator[bool]:
        """Reserve the estimated cost of a request within the context, and yield True. If the budget doesn't
        allow it, reserve nothing, and yield False.
        """
        cost = self.estimate(request)
        if not self.allows(cost):
            yield False
            return
        self.running += cost
        try:
            yield True
        finally:
            self.running -= cost


def estimate_tokens(request: Request, answer_log: AnswerLog) -> tuple[float, float]:
    """Return two numbers of tokens, of a request and of its answer: the averages of the answers in `answer_log` or, if
    there are none, estimates from the length of the prompt and the number of sentences asked for.
    """
    if number := answer_log.tokens.answers:
        return answer_log.tokens.input / number, answer_log.tokens.output / number
    return count_tokens([request.prompt]), TOKENS_PER_SENTENCE * request.number


def count_tokens(texts: Sequence[str]) -> int:
    """Return the approximate number of tokens of texts: one per four characters, OpenAI's figure for English."""
    return sum(-(-len(text) // 4) for text in texts)
