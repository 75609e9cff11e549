"""Ask through the Batch API: half the price, answers within a day.

Requests are handed in as files; which batches are ours, and what they were about, is known from the metadata that the
server keeps, so that a run that was killed right after it handed one in finds it again.
"""

import asyncio
import hashlib
import json
import logging
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import openai
from openai.types import Batch

from data.chat import FILTERED, as_json, read_completion, told
from data.errors import UserError
from data.journal import Journal, Line, lines
from data.questions import Answer, Answered, Budget, Captions, Request, to_line
from data.shards import write_json

logger = logging.getLogger("chorale.paraphrase")

COLLECTED_FILE = "paraphrases-batches.json"
"""The batches whose answers are all in the journal."""

ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
MOST_REQUESTS = 50_000
MOST_BYTES = 190 * 2**20
"""Of one batch: OpenAI takes 50,000 requests and 200 MB."""

AT_A_TIME = 1000
"""Answers that are written and synced together."""

SETTLE_S = 5.0
"""Before a batch that may have been taken is looked for."""

LOST_LOOKS = 16
"""At a batch in a row that the server doesn't answer, before the run is ended."""

OPEN = {"validating", "in_progress", "finalizing", "cancelling"}
ENDED = {"completed", "expired", "cancelled"}
"""A batch's states; the other one is 'failed'. What an expired or cancelled one has answered is paid for, too."""


class LostError(Exception):
    """A batch that brings no answers: it wasn't taken, or is gone from the server."""


@dataclass
class BatchRun:
    """One run through the batches of one split, model and instruction."""

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
        """Collect what was handed in before, then hand in what isn't done, until each caption is."""
        try:
            await self._all()
        except openai.OpenAIError as error:
            why = told(error, self.client, self.captions.model)
            self.stopped = str(why) if isinstance(why, UserError) else f"the server doesn't answer: {why}"
        except OSError as error:
            self.stopped = f"{error.filename or self.journal.path} can't be used: {error.strerror or error}"
        finally:
            await self.client.close()

    async def _all(self) -> None:
        for batch in [batch async for batch in self.ours()]:
            await self.collect(batch.id)
        for _ in range(self.attempts):
            self.stopped = ""
            handed_in = [await self.hand_in(Path(file)) for file in self.files()]
            if not handed_in:
                return
            if not sum([await self.collect(batch_id) for batch_id in handed_in]):
                self.stopped = self.stopped or "no request of the last batch was answered"
                return

    @property
    def mark(self) -> dict[str, str]:
        """What tells our batches from others."""
        what = json.dumps([self.captions.split.name, self.captions.model, self.captions.instruction])
        return {"chorale": hashlib.sha256(what.encode()).hexdigest()[:32]}

    @property
    def collected_file(self) -> Path:
        """Lies beside the journal."""
        return self.captions.journal.with_name(COLLECTED_FILE)

    def collected(self) -> set[str]:
        """The batches whose answers are all in the journal."""
        return set(json.loads(self.collected_file.read_text())) if self.collected_file.exists() else set()

    async def ours(self) -> AsyncIterator[Batch]:
        """The batches that were handed in before and aren't collected."""
        collected = self.collected()
        async for batch in self.client.batches.list(limit=100):
            if batch.metadata == self.mark and batch.id not in collected and batch.status in OPEN | ENDED:
                yield batch

    async def begin(self, input_file_id: str) -> Batch:
        """Hand an uploaded file in, once: where the server's word is lost, its list says whether it was taken."""
        once = self.client.with_options(max_retries=0)
        try:
            return await once.batches.create(
                input_file_id=input_file_id, endpoint=ENDPOINT, completion_window="24h", metadata=self.mark
            )
        except (openai.APIConnectionError, openai.InternalServerError):
            await asyncio.sleep(min(self.poll_s, SETTLE_S))
            async for batch in self.ours():
                if batch.input_file_id == input_file_id:
                    return batch
            raise  # the next run finds it, should it appear yet

    def todo(self) -> Iterator[Request]:
        """The requests that aren't done, as far as the budget goes."""
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
        """Files of requests, one a batch, which are gone once the next is asked for."""
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

    async def hand_in(self, file: Path) -> str:
        """Hand a file of requests in; its batch's id."""
        uploaded = await self.client.files.create(file=file, purpose="batch")
        batch = await self.begin(uploaded.id)
        logger.info("handed in batch %s", batch.id)
        return batch.id

    async def collect(self, batch_id: str) -> int:
        """Wait for a batch to end, and put its answers into the journal; how many there were."""
        number = 0
        try:
            batch = await self.ended(batch_id)
            there = {line["key"] for _, line in lines(self.captions.journal) if line.get("batch") == batch_id}
            number += len(there)
            for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
                content = await self.client.files.content(file_id)
                number += await self.keep(batch_id, content.content, there)
        except (LostError, openai.NotFoundError) as error:
            why = str(error) if isinstance(error, LostError) else f"batch {batch_id} or its file is gone (404)"
            logger.warning(why)
            self.stopped = why
        write_json(self.collected_file, sorted(self.collected() | {batch_id}))
        return number

    async def keep(self, batch_id: str, content: bytes, there: set[str]) -> int:
        """Put the answers of a batch's file into the journal that aren't there; how many."""
        requests = {request.key: request for request in self.captions.distinct()}
        new: list[Line] = []
        for text in content.split(b"\n"):
            value = as_json(text)
            if not isinstance(value, dict):
                continue
            request = requests.get(value.get("custom_id", ""))
            answer = answer_of(value)
            if request and answer and request.key not in there:
                there.add(request.key)
                new.append(to_line(request, answer) | {"batch": batch_id})
        for start in range(0, len(new), AT_A_TIME):
            part = new[start : start + AT_A_TIME]
            places = await asyncio.gather(*map(self.journal.append, part))
            for place, line in zip(places, part, strict=True):
                self.answered.add(place, line)
        return len(new)

    async def ended(self, batch_id: str) -> Batch:
        """A batch that has ended. A LostError where the server couldn't take it."""
        said, lost = "", 0
        while True:
            try:
                batch = await self.client.batches.retrieve(batch_id)
                lost = 0
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


def answer_of(value: dict[str, Any]) -> Answer | None:
    """The answer in a line of a batch's output; None where the request failed and may be sent again."""
    match value:
        case {"response": {"status_code": 200, "body": body}}:
            return read_completion(body)
        case {"response": {"body": {"error": {"code": code}}}} | {"error": {"code": code}} if code in FILTERED:
            return Answer("", "refused")
    return None
