"""Requests through OpenAI's Batch API: half the price, answers within a day.

Requests are handed in as files. Which batches are ours, and what they were about, is kept beside the journal, so that
nobody asks at once what a batch is about; and in metadata that the server keeps, so that a run that was killed right as
it handed one in finds it again.
"""

import asyncio
import hashlib
import io
import itertools
import json
import logging
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import openai
from openai.types import Batch

from data.errors import UserError
from data.paraphrasing.chat_client import FILTERED, PAUSES, as_json, pause_s, read_completion, told
from data.paraphrasing.job import Answer, Answered, Budget, Captions, Request, to_line
from data.paraphrasing.journal import Journal, lines
from data.store.files import read_json, write_json

logger = logging.getLogger("chorale.paraphrase")

BATCHES_FILE = "paraphrases-batches.json"
"""File with the submitted batches of a split: an Entry by the id of the file of requests."""

Entry = dict[str, str]
"""'model' and 'instruction'; 'batch', its id, '' until the server has returned it; 'state', 'open' or 'collected'."""

ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
MOST_BYTES = 190 * 2**20
"""Maximum size of one batch; OpenAI accepts 200 MB."""

AT_A_TIME = 1000
"""Number of answers that are written and synced together."""

SETTLE_S = 5.0
"""Time in seconds before a batch that may have been accepted is searched for."""

LOST_LOOKS = 16
"""Maximum number of consecutive unanswered status requests before the run ends."""

OPEN = {"validating", "in_progress", "finalizing", "cancelling"}
ENDED = {"completed", "expired", "cancelled"}
"""Final states of a batch, besides 'failed'. Answers of an expired or cancelled batch are paid for as well."""


class LostError(Exception):
    """Error of a batch without answers: it was not accepted, or no longer exists on the server."""


def batches_file(captions: Captions) -> Path:
    """Return the path of the file of batches beside the journal; the holder of the journal's lock writes it."""
    return captions.journal.with_name(BATCHES_FILE)


def handed_in(captions: Captions) -> dict[str, Entry]:
    """Return all batches submitted for a split, by any model and instruction."""
    path = batches_file(captions)
    return read_json(path) if path.exists() else {}


def open_batches(captions: Captions) -> dict[str, str]:
    """Return the uncollected batches about the same captions, model and instruction, by their files."""
    return {
        file_id: entry["batch"]
        for file_id, entry in handed_in(captions).items()
        if (entry["state"], entry["model"], entry["instruction"]) == ("open", captions.model, captions.instruction)
    }


@dataclass
class BatchRun:
    """A run through the batches of one split, model and instruction."""

    client: openai.AsyncOpenAI
    captions: Captions
    journal: Journal
    answered: Answered
    budget: Budget
    attempts: int
    poll_s: float
    batch_size: int
    stopped: str = ""  # why not all was asked

    async def all(self) -> None:
        """Collect earlier batches, then submit requests until every caption is done."""
        try:
            await self._all()
        except UserError as error:
            self.stopped = str(error)
        except openai.OpenAIError as error:
            why = told(error, self.client, self.captions.model)
            self.stopped = str(why) if isinstance(why, UserError) else f"the server doesn't answer: {why}"
        except OSError as error:
            self.stopped = f"{error.filename or self.journal.path} can't be used: {error.strerror or error}"
        finally:
            await self.client.close()

    async def _all(self) -> None:
        files = await self.left_open()
        while not files or any([await self.collect(*ids) for ids in files]):
            self.stopped = ""
            files = [await self.hand_in(Path(file)) for file in self.files()]
            if not files:
                return
        self.stopped = self.stopped or "no request of the last batch was answered"

    @property
    def mark(self) -> dict[str, str]:
        """Tag that distinguishes our batches from others."""
        what = json.dumps([self.captions.split.name, self.captions.model, self.captions.instruction])
        return {"chorale": hashlib.sha256(what.encode()).hexdigest()[:32]}

    def note(self, file_id: str, batch_id: str, state: str) -> None:
        """Record the state of a file of requests."""
        what = {"model": self.captions.model, "instruction": self.captions.instruction}
        entry = what | {"batch": batch_id, "state": state}
        write_json(batches_file(self.captions), handed_in(self.captions) | {file_id: entry})

    def forget(self, file_id: str) -> None:
        """Forget a file of requests that the server has not accepted."""
        entries = handed_in(self.captions)
        del entries[file_id]
        write_json(batches_file(self.captions), entries)

    async def left_open(self) -> list[tuple[str, str]]:
        """Return the submitted files that have not been collected, with their batches."""
        noted = open_batches(self.captions)
        listed = {batch.input_file_id: batch.id async for batch in self.ours()}
        for file_id in [file_id for file_id, batch_id in noted.items() if not batch_id and file_id not in listed]:
            self.forget(file_id)
            del noted[file_id]
        return list((noted | listed).items())

    async def ours(self) -> AsyncIterator[Batch]:
        """Return the batches on the server that carry our tag and have not been collected."""
        collected = {file_id for file_id, entry in handed_in(self.captions).items() if entry["state"] == "collected"}
        async for batch in self.client.batches.list(limit=100):
            if batch.metadata == self.mark and batch.input_file_id not in collected and batch.status in OPEN | ENDED:
                yield batch

    async def begin(self, file_id: str) -> str:
        """Submit an uploaded file once: if the server's answer is lost, its list shows whether the file was accepted."""
        try:
            return await self.create(file_id)
        except (openai.APIConnectionError, openai.InternalServerError):
            await asyncio.sleep(min(self.poll_s, SETTLE_S))
            async for batch in self.ours():
                if batch.input_file_id == file_id:
                    return batch.id
            raise  # the next run finds it, should it appear yet
        except (openai.APIStatusError, UserError):
            self.forget(file_id)
            raise

    async def create(self, file_id: str) -> str:
        """Create a batch and return its id; retried after a rate limit, since the batch was not created then."""
        once = self.client.with_options(max_retries=0)
        pauses = 0
        while True:
            try:
                batch = await once.batches.create(
                    input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h", metadata=self.mark
                )
                return batch.id
            except openai.RateLimitError as error:
                wait_s = pause_s(error)
                if pauses == PAUSES:
                    raise
                pauses += 1
                await asyncio.sleep(self.poll_s if wait_s is None else wait_s)

    def todo(self) -> Iterator[Request]:
        """Yield the requests that aren't done, as far as the budget allows."""
        planned = 0.0
        for request in self.captions.distinct():
            if self.answered.is_done(request, self.attempts):
                continue
            planned += self.budget.estimate(request)
            if not self.budget.has(planned):
                self.stopped = self.budget.exhausted()
                return
            yield request

    def files(self) -> Iterator[str]:
        """Yield files of requests, one per batch; each is removed when the next is requested."""
        todo = self.todo()
        request = next(todo, None)
        while request:
            with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".jsonl") as file:
                for _ in range(self.batch_size):
                    line = {"custom_id": request.key, "method": "POST", "url": ENDPOINT, "body": request.body}
                    file.write(json.dumps(line) + "\n")
                    request = next(todo, None)
                    if request is None or file.tell() > MOST_BYTES:
                        break
                file.flush()
                yield file.name

    async def hand_in(self, file: Path) -> tuple[str, str]:
        """Submit a file of requests; return the ids of the file and of its batch."""
        uploaded = await self.client.files.create(file=file, purpose="batch")
        self.note(uploaded.id, "", "open")  # the server may take it, and its word be lost
        batch_id = await self.begin(uploaded.id)
        self.note(uploaded.id, batch_id, "open")
        logger.info("handed in batch %s", batch_id)
        return uploaded.id, batch_id

    async def collect(self, file_id: str, batch_id: str) -> int:
        """Wait for a batch to end, write its answers to the journal, and return their number."""
        number = 0
        try:
            batch = await self.ended(batch_id)
            there = {line["key"] for _, line in lines(self.captions.journal) if line.get("batch") == batch_id}
            number += len(there)
            for answers_id in filter(None, (batch.output_file_id, batch.error_file_id)):
                content = await self.client.files.content(answers_id)
                number += await self.keep(batch_id, content.content, there)
        except (LostError, openai.NotFoundError) as error:
            why = str(error) if isinstance(error, LostError) else f"the answers of batch {batch_id} are gone (404)"
            logger.warning(why)
            self.stopped = why
        self.note(file_id, batch_id, "collected")
        return number

    async def keep(self, batch_id: str, content: bytes, there: set[str]) -> int:
        """Write the answers of a batch's file that are missing from the journal; return their number."""
        file = io.BytesIO(content)
        places = places_of(file)
        wanted = places.keys() - there
        new = (request for request in self.captions.distinct() if request.key in wanted)
        number = 0
        while part := list(itertools.islice(new, AT_A_TIME)):
            lines_of_part = []
            for request in part:
                file.seek(places[request.key])
                answer = answer_of(as_json(file.readline()))
                assert answer
                lines_of_part.append(to_line(request, answer) | {"batch": batch_id})
            written = await asyncio.gather(*map(self.journal.append, lines_of_part))
            for place, line in zip(written, lines_of_part, strict=True):
                self.answered.add(place, line)
            number += len(part)
        there |= wanted
        return number

    async def ended(self, batch_id: str) -> Batch:
        """Return a batch that has ended. Raises BatchLostError if the server could not process it."""
        said, lost = "", 0
        while True:
            try:
                batch = await self.client.batches.retrieve(batch_id)
                lost = 0
            except openai.NotFoundError as error:
                raise UserError(
                    f"{self.client.base_url} knows no batch {batch_id} (404): give the --base-url and the key that it "
                    f"was handed in with; or remove {batches_file(self.captions)}, and it is asked and paid for anew"
                ) from error
            except (openai.APIConnectionError, openai.InternalServerError) as error:
                lost += 1
                if lost == LOST_LOOKS:
                    raise
                logger.warning("batch %s: %s; looking again", batch_id, told(error, self.client, self.captions.model))
                await asyncio.sleep(self.poll_s)
                continue
            if batch.status not in OPEN:
                break
            counts = batch.request_counts
            line = f"batch {batch_id}: {batch.status}"
            line += f", {counts.completed:,} of {counts.total:,}" if counts else ""
            if line != said:
                logger.info(line)
            said = line
            await asyncio.sleep(self.poll_s)
        if batch.status not in ENDED:
            errors = batch.errors.data or [] if batch.errors else []
            why = "; ".join(str(error.message) for error in errors) or batch.status
            raise LostError(f"batch {batch_id} wasn't taken: {why}")
        return batch


def places_of(file: BinaryIO) -> dict[str, int]:
    """Return the offset of each request's answer in a batch's output, by the request's key."""
    places: dict[str, int] = {}
    place = 0
    for text in file:
        value = as_json(text)
        if answer_of(value) and isinstance(key := value.get("custom_id"), str):
            places.setdefault(key, place)
        place += len(text)
    return places


def answer_of(value: Any) -> Answer | None:
    """Return the answer in a line of a batch's output; None if the request failed and may be sent again."""
    match value:
        case {"response": {"status_code": 200, "body": body}}:
            return read_completion(body)
        case {"response": {"body": {"error": {"code": code}}}} | {"error": {"code": code}} if code in FILTERED:
            return Answer("", "refused")
    return None
