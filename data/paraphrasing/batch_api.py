"""Requests through OpenAI's Batch API: half the price, answers within a day.

Requests are submitted as files. Each batch is recorded beside the journal, with its model and instruction, so that its
captions are not asked about interactively as well. The metadata of a batch on the server identify the split, model and
instruction, so that the next run finds the batch if a run is killed while it submits.
"""

import asyncio
import hashlib
import io
import itertools
import json
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import openai
from openai.types import Batch, FileObject

from data.errors import UserError
from data.paraphrasing.chat_client import MAX_PAUSES, describe_error, find_pause_s
from data.paraphrasing.completions import (
    FILTER_CODES,
    MAX_QUOTED,
    REFUSED,
    find_error,
    parse_completion,
    parse_json_or_none,
    require_batch,
)
from data.paraphrasing.job import Answer, AnswerLog, Budget, ParaphraseJob, Request, to_line
from data.paraphrasing.journal import Journal, read_lines
from data.store.files import read_json, write_json
from data.store.scratch import create_scratch_folder

logger = logging.getLogger("chorale.paraphrase")

BATCHES_FILE = "paraphrases-batches.json"
"""File with the submitted batches of a split: an Entry by the id of the file of requests."""

Entry = dict[str, str]
"""Record of a batch: 'model'; 'instruction'; 'batch', the id, '' until the server has returned it; 'state', 'open' or
'collected'.
"""

ENTRY_FIELDS = ("model", "instruction", "batch", "state")
ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
MAX_BYTES = 190 * 2**20
"""Maximum size of one batch; OpenAI accepts 200 MB."""

ANSWERS_PER_WRITE = 1000
"""Number of answers that are written and synced together."""

SETTLE_S = 5.0
"""Seconds to wait, after a lost answer, before the server's list is searched for the batch."""

MAX_FAILED_POLLS = 16
"""Maximum number of consecutive unanswered status requests before the run ends."""

OPEN = {"validating", "in_progress", "finalizing", "cancelling"}
FINAL_STATES = {"completed", "expired", "cancelled"}
"""Final states of a batch, besides 'failed'. Answers of an expired or cancelled batch are paid for as well."""


class BatchLostError(Exception):
    """Error of a batch without answers: it was not accepted, or no longer exists on the server."""


def batches_file(job: ParaphraseJob) -> Path:
    """Return the path of the file that lists the submitted batches of a split. It is beside the journal, and only
    the process that holds the journal's lock writes it.
    """
    return job.journal.with_name(BATCHES_FILE)


def read_batches(job: ParaphraseJob) -> dict[str, Entry]:
    """Return all batches submitted for a split, by any model and instruction. A key is the id of a file of requests;
    its value has the 'model', the 'instruction', the id of the 'batch' ('' if it isn't known yet) and the 'state',
    'open' or 'collected'.
    """
    path = batches_file(job)
    entries: dict[str, Entry] = read_json(path) if path.exists() else {}
    try:
        if all(isinstance(entry[name], str) for entry in entries.values() for name in ENTRY_FIELDS):
            return entries
    except (AttributeError, TypeError, KeyError):
        pass
    raise UserError(f"{path} isn't a list of batches: restore it, or remove it and pay for open batches again")


def find_open_batches(job: ParaphraseJob) -> dict[str, str]:
    """Return the batches with the job's split, model and instruction whose answers have not been collected. A key
    is the id of a file of requests; its value is the id of the batch, '' if it isn't known.
    """
    return {
        file_id: entry["batch"]
        for file_id, entry in read_batches(job).items()
        if (entry["state"], entry["model"], entry["instruction"]) == ("open", job.model, job.instruction)
    }


@dataclass
class BatchRun:
    """Run of requests through the Batch API, for one split, model and instruction. All answers are written to the
    journal.
    """

    client: openai.AsyncOpenAI
    job: ParaphraseJob
    journal: Journal
    answer_log: AnswerLog
    budget: Budget
    attempts: int
    poll_s: float
    batch_size: int
    stopped: str = ""  # reason for not asking about all captions
    collected: set[str] = field(default_factory=set)  # ids of the batches whose answers this run has collected
    last_error: str = ""  # error of the last request that failed within a batch

    async def ask_all(self) -> None:
        """Collect the answers of batches that earlier runs submitted, then submit batches until every caption
        is done. If this ends early, the reason is in `stopped`; errors of the server and of files aren't
        raised.
        """
        try:
            await self._collect_and_submit()
        except UserError as error:
            self.stopped = str(error)
        except openai.OpenAIError as error:
            described = describe_error(error, self.client, self.job.model)
            self.stopped = (
                str(described) if isinstance(described, UserError) else f"the server doesn't answer: {described}"
            )
        except ValueError as error:  # OpenAI's client reads answers as JSON without a check
            self.stopped = f"{self.client.base_url} doesn't answer as the Batch API does ({error}): check --base-url"
        except OSError as error:
            self.stopped = f"{error.filename or self.journal.path} can't be used: {error.strerror or error}"
        finally:
            await self.client.close()

    async def _collect_and_submit(self) -> None:
        uncollected = await self.list_uncollected()
        while not uncollected or any([await self.collect(*ids) for ids in uncollected]):
            self.stopped = ""
            uncollected = [await self.submit(file) for file in self.iter_files()]
            if not uncollected:
                return
        reason = "no request of the last batch was answered"
        self.stopped = self.stopped or (f"{reason}: {self.last_error}" if self.last_error else reason)

    @property
    def tag(self) -> dict[str, str]:
        """Metadata that each submitted batch has on the server, by which the batches of this split, model and
        instruction are recognised.
        """
        identity = json.dumps([self.job.split.name, self.job.model, self.job.instruction])
        return {"chorale": hashlib.sha256(identity.encode()).hexdigest()[:32]}

    def record(self, file_id: str, batch_id: str, state: str) -> None:
        """Write the state of a batch, 'open' or 'collected', into the split's file of batches. `file_id` is the
        id of its file of requests; `batch_id` is '' until the server has returned it.
        """
        author = {"model": self.job.model, "instruction": self.job.instruction}
        entry = author | {"batch": batch_id, "state": state}
        write_json(batches_file(self.job), read_batches(self.job) | {file_id: entry})

    def forget(self, file_id: str) -> None:
        """Remove a file of requests from the split's file of batches, because the server has not accepted it."""
        entries = read_batches(self.job)
        del entries[file_id]
        write_json(batches_file(self.job), entries)

    async def list_uncollected(self) -> list[tuple[str, str]]:
        """Return the batches of this split, model and instruction whose answers have not been collected, as
        pairs of the id of the file of requests and the id of the batch. Files of requests for which the server
        has no batch are left out, and removed from the record of batches.
        """
        open_batches = find_open_batches(self.job)
        on_server = {batch.input_file_id: batch.id async for batch in self.fetch_uncollected()}
        for file_id in [
            file_id for file_id, batch_id in open_batches.items() if not batch_id and file_id not in on_server
        ]:
            self.forget(file_id)
            del open_batches[file_id]
        return list((open_batches | on_server).items())

    async def fetch_uncollected(self) -> AsyncIterator[Batch]:
        """Yield the batches on the server that belong to this split, model and instruction, and whose answers
        have not been collected. Failed batches are left out.
        """
        collected = {file_id for file_id, entry in read_batches(self.job).items() if entry["state"] == "collected"}
        async for batch in self.client.batches.list(limit=100):
            require_batch(batch)
            if (
                batch.metadata == self.tag
                and batch.input_file_id not in collected
                and batch.status in OPEN | FINAL_STATES
            ):
                yield batch

    async def submit_once(self, file_id: str) -> str:
        """Create a batch from an uploaded file of requests, and return its id. If the connection is lost before
        the server answers, search the server's list for the batch, so that it is not created twice.
        """
        try:
            return await self.create_batch(file_id)
        except (openai.APIConnectionError, openai.InternalServerError):
            await asyncio.sleep(min(self.poll_s, SETTLE_S))
            async for batch in self.fetch_uncollected():
                if batch.input_file_id == file_id:
                    return batch.id
            raise  # the next run finds the batch if it appears later
        except (openai.APIStatusError, UserError):
            self.forget(file_id)
            raise

    async def create_batch(self, file_id: str) -> str:
        """Create a batch and return its id; retry only after a rate limit, since no batch was created then."""
        client = self.client.with_options(max_retries=0)
        pauses = 0
        while True:
            try:
                batch = await client.batches.create(
                    input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h", metadata=self.tag
                )
                return require_batch(batch).id
            except openai.RateLimitError as error:
                wait_s = find_pause_s(error)
                if pauses == MAX_PAUSES:
                    raise
                pauses += 1
                await asyncio.sleep(self.poll_s if wait_s is None else wait_s)

    def iter_requests(self) -> Iterator[Request]:
        """Yield the requests that aren't done. If their estimated cost exceeds the budget, end early, and give
        the reason in `stopped`.
        """
        planned = 0.0
        for request in self.job.distinct_requests():
            if self.answer_log.is_done(request, self.attempts):
                continue
            planned += self.budget.estimate(request)
            if not self.budget.allows(planned):
                self.stopped = self.budget.exhausted_reason()
                return
            yield request

    def iter_files(self) -> Iterator[Path]:
        """Write the requests into temporary files, one for each batch, and yield the path of each. A file is
        removed when the next one is requested.
        """
        requests = self.iter_requests()
        request = next(requests, None)
        while request:
            with create_scratch_folder() as scratch:
                path = scratch / "requests.jsonl"
                with path.open("w", encoding="utf-8") as file:
                    for _ in range(self.batch_size):
                        line = {"custom_id": request.key, "method": "POST", "url": ENDPOINT, "body": request.body}
                        file.write(json.dumps(line) + "\n")
                        request = next(requests, None)
                        if request is None or file.tell() > MAX_BYTES:
                            break
                yield path

    async def submit(self, file: Path) -> tuple[str, str]:
        """Upload a file of requests, and create a batch from it. Return the id of the file on the server, and
        the id of the batch.
        """
        uploaded = await self.client.files.create(file=file, purpose="batch")
        if not isinstance(uploaded, FileObject) or not isinstance(uploaded.id, str):
            raise ValueError(f"a file without an id: {str(uploaded)[:MAX_QUOTED]}")
        self.record(uploaded.id, "", "open")  # before it is submitted: the answer with its batch may be lost
        batch_id = await self.submit_once(uploaded.id)
        if batch_id in self.collected:  # its answers are in the journal: this would go on for ever
            raise ValueError(f"the id of an earlier batch again: {batch_id}")
        self.record(uploaded.id, batch_id, "open")
        logger.info("submitted batch %s", batch_id)
        return uploaded.id, batch_id

    async def collect(self, file_id: str, batch_id: str) -> int:
        """Wait for a batch to end, write its answers to the journal, and record the batch as collected. Return
        the number of its answers in the journal.
        """
        num_answers = 0
        try:
            batch = await self.wait_for_end(batch_id)
            recorded = {line["key"] for _, line in read_lines(self.job.journal) if line.get("batch") == batch_id}
            num_answers += len(recorded)
            for answers_id in filter(None, (batch.output_file_id, batch.error_file_id)):
                content = await self.client.files.content(answers_id)
                num_answers += await self.write_answers(batch_id, content.content, recorded)
        except (BatchLostError, openai.NotFoundError) as error:
            reason = f"the answers of batch {batch_id} no longer exist (404)"
            if isinstance(error, BatchLostError):
                reason = str(error)
            logger.warning(reason)
            self.stopped = reason
        self.record(file_id, batch_id, "collected")
        self.collected.add(batch_id)
        return num_answers

    async def write_answers(self, batch_id: str, content: bytes, recorded: set[str]) -> int:
        """Write the answers in `content`, a batch's output file, that the journal lacks, and return their number.
        `recorded` has the keys of the requests whose answers are in the journal; those of the new ones are added.
        """
        file = io.BytesIO(content)
        offsets = find_offsets(file)
        self.last_error = find_last_error(content) or self.last_error
        missing = offsets.keys() - recorded
        requests = (request for request in self.job.distinct_requests() if request.key in missing)
        num_answers = 0
        while chunk := list(itertools.islice(requests, ANSWERS_PER_WRITE)):
            lines = []
            for request in chunk:
                file.seek(offsets[request.key])
                answer = parse_answer(parse_json_or_none(file.readline()))
                assert answer
                lines.append(to_line(request, answer) | {"batch": batch_id})
            journal_offsets = await asyncio.gather(*map(self.journal.append, lines))
            for offset, line in zip(journal_offsets, lines, strict=True):
                self.answer_log.add_line(offset, line)
            num_answers += len(chunk)
        recorded |= missing
        return num_answers

    async def wait_for_end(self, batch_id: str) -> Batch:
        """Request the state of a batch repeatedly until it has ended, and return the batch. Raises
        BatchLostError if the server could not process it.
        """
        last_line, failed_polls = "", 0
        while True:
            try:
                batch = require_batch(await self.client.batches.retrieve(batch_id))
                failed_polls = 0
            except openai.NotFoundError as error:
                raise UserError(
                    f"{self.client.base_url} has no batch {batch_id} (404): pass the --base-url and the key that "
                    f"it was submitted with; or remove {batches_file(self.job)}, and pay for its requests again"
                ) from error
            except (openai.APIConnectionError, openai.InternalServerError) as error:
                failed_polls += 1
                if failed_polls == MAX_FAILED_POLLS:
                    raise
                logger.warning(
                    "batch %s: %s; trying again", batch_id, describe_error(error, self.client, self.job.model)
                )
                await asyncio.sleep(self.poll_s)
                continue
            if batch.status not in OPEN:
                break
            counts = batch.request_counts
            line = f"batch {batch_id}: {batch.status}"
            line += f", {counts.completed:,} of {counts.total:,}" if counts else ""
            if line != last_line:
                logger.info(line)
            last_line = line
            await asyncio.sleep(self.poll_s)
        if batch.status not in FINAL_STATES:
            errors = batch.errors.data or [] if batch.errors else []
            reason = "; ".join(str(error.message) for error in errors) or batch.status
            raise BatchLostError(f"batch {batch_id} was not accepted: {reason}")
        return batch


def find_offsets(file: BinaryIO) -> dict[str, int]:
    """Return the position in bytes of each answer in a batch's output file, by the key of the request."""
    offsets: dict[str, int] = {}
    offset = 0
    for text in file:
        value = parse_json_or_none(text)
        if parse_answer(value) and isinstance(key := value.get("custom_id"), str):
            offsets.setdefault(key, offset)
        offset += len(text)
    return offsets


def find_last_error(content: bytes) -> str:
    """Return the message of the last error in a batch's output file; '' if every request was answered."""
    for text in reversed(content.splitlines()):
        value = parse_json_or_none(text)
        if isinstance(value, dict) and parse_answer(value) is None:
            response = value.get("response")
            error = find_error(response.get("body") if isinstance(response, dict) else None) or find_error(value)
            return str((error or {}).get("message") or (error or {}).get("code") or "")[:MAX_QUOTED]
    return ""


def parse_answer(value: Any) -> Answer | None:
    """Return the answer in a line of a batch's output file, given as parsed JSON; None if the request failed and
    may be sent again.
    """
    match value:
        case {"response": {"status_code": 200, "body": body}}:
            return parse_completion(body)
        case {"response": {"body": {"error": {"code": code}}}} | {"error": {"code": code}} if code in FILTER_CODES:
            return Answer("", REFUSED)
    return None
