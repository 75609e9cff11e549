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

from data.chat import read_completion, told
from data.errors import UserError
from data.journal import Journal, lines
from data.questions import Answer, Answered, Budget, Captions, Request, to_line
from data.shards import write_json

logger = logging.getLogger("chorale.paraphrase")

COLLECTED_FILE = "paraphrases-batches.json"
"""The batches whose answers are all in the journal."""

ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
MOST_REQUESTS = 50_000
MOST_BYTES = 190 * 2**20
"""Of one batch: OpenAI takes 50,000 requests and 200 MB."""

OPEN = {"validating", "in_progress", "finalizing", "cancelling"}
ENDED = {"completed", "expired", "cancelled"}
"""A batch's states; the other one is 'failed'. What an expired or cancelled one has answered is paid for, too."""


@dataclass
class Batches:
    """The batches of one split, model and instruction."""

    client: openai.AsyncOpenAI
    captions: Captions
    journal: Journal
    answered: Answered
    budget: Budget
    attempts: int
    poll_s: float
    stopped: str = ""  # why not all was asked

    async def all(self) -> None:
        """Collect what was handed in before, then hand in what isn't done, until each caption is."""
        try:
            await self._all()
        except openai.OpenAIError as error:
            raise as_user_error(told(error, self.client, self.captions.model)) from error
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
                self.stopped = "no request of the last batch was answered; the same command hands them in again"
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

    def todo(self) -> Iterator[Request]:
        """The requests that aren't done, as far as the budget goes."""
        planned = 0.0
        for request in self.captions.distinct():
            if self.answered.is_done(request, self.attempts):
                continue
            planned += self.budget.estimate(request)
            if self.budget.limit_usd is not None and self.budget.spent() + planned > self.budget.limit_usd:
                self.stopped = f"the budget of {self.budget.limit_usd:g} USD is spent ({self.budget.spent():.2f})"
                return
            yield request

    def files(self) -> Iterator[str]:
        """Files of requests, one a batch, which are gone once the next is asked for."""
        todo = self.todo()
        request = next(todo, None)
        while request:
            with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".jsonl") as file:
                for _ in range(MOST_REQUESTS):
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
        batch = await self.client.batches.create(
            input_file_id=uploaded.id,
            endpoint=ENDPOINT,
            completion_window="24h",
            metadata=self.mark,
        )
        logger.info("handed in batch %s", batch.id)
        return batch.id

    async def collect(self, batch_id: str) -> int:
        """Wait for a batch to end, and put its answers into the journal; how many there were."""
        batch = await self.ended(batch_id)
        requests = {request.key: request for request in self.captions.distinct()}
        there = {line["key"] for _, line in lines(self.captions.journal) if line.get("batch") == batch_id}
        number = 0
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
            content = await self.client.files.content(file_id)
            for text in content.text.splitlines():
                value = json.loads(text) if text.strip() else {}
                request = requests.get(value.get("custom_id", ""))
                answer = answer_of(value)
                if request and answer and request.key not in there:
                    line = to_line(request, answer) | {"batch": batch_id}
                    self.answered.add(await self.journal.append(line), line)
                    number += 1
        write_json(self.collected_file, sorted(self.collected() | {batch_id}))
        return number + len(there)

    async def ended(self, batch_id: str) -> Batch:
        """A batch that has ended. A UserError where the server couldn't take it."""
        said = ""
        while (batch := await self.client.batches.retrieve(batch_id)).status in OPEN:
            counts = batch.request_counts
            line = f"batch {batch_id}: {batch.status}" + (
                f", {counts.completed:,} of {counts.total:,}" if counts else ""
            )
            if line != said:
                logger.info(line)
            said = line
            await asyncio.sleep(self.poll_s)
        if batch.status not in ENDED:
            errors = batch.errors.data or [] if batch.errors else []
            why = "; ".join(str(error.message) for error in errors) or batch.status
            raise UserError(f"batch {batch_id} wasn't taken: {why}")
        return batch


def answer_of(value: dict[str, Any]) -> Answer | None:
    """The answer in a line of a batch's output; None where the request failed and may be sent again."""
    response = value.get("response") or {}
    body = response.get("body") or {}
    if response.get("status_code") == 200:
        return read_completion(body)
    error = body.get("error") or value.get("error") or {}
    if isinstance(error, dict) and error.get("code") in ("content_filter", "content_policy_violation"):
        return Answer("", "refused")
    return None


def as_user_error(error: Exception) -> UserError:
    """What ends the run: the same command goes on."""
    return error if isinstance(error, UserError) else UserError(f"the server doesn't answer: {error}")
