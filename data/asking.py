"""Ask a model about all captions of a split, many at a time."""

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from data.chat import Model, UnansweredError
from data.errors import UserError
from data.journal import Journal
from data.progress import ProgressLine
from data.questions import Answered, Budget, Request, is_done, to_line

logger = logging.getLogger("chorale.paraphrase")

GIVE_UP_AFTER = 16
"""Requests in a row that weren't answered: the server is away."""

INTERRUPTED = "interrupted; the same command goes on"


@dataclass
class Run:
    """One run: asks about every caption until it has its paraphrases, or has been asked about often enough."""

    model: Model
    journal: Journal
    answered: Answered
    budget: Budget
    attempts: int
    progress: "Progress"
    in_a_row: int = 0
    stopped: str = ""  # why nothing more is asked

    async def all(self, requests: Iterator[Request], concurrency: int) -> None:
        """Ask about all that isn't done yet, `concurrency` captions at a time.

        Ctrl-C lets what is being answered come to its end; a second one doesn't.
        """
        todo = (request for request in requests if not self.done_before(request))
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task

        def interrupt() -> None:
            if self.stopped:
                task.cancel()
            self.stopped = self.stopped or INTERRUPTED

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt)
        try:
            async with self.model, asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(self.work(todo))
        except* UserError as errors:
            raise errors.exceptions[0] from None
        except* OSError as errors:
            why = errors.exceptions[0]
            raise UserError(f"{self.journal.path} can't be written ({why}); then the same command goes on") from None

    def done_before(self, request: Request) -> bool:
        """Whether a request was done before this run, or twice in it."""
        done = self.answered.is_done(request, self.attempts)
        if done:
            self.progress.add(before=True)
        return done

    async def work(self, todo: Iterator[Request]) -> None:
        """Ask about one caption after the other."""
        for request in todo:
            await self.satisfy(request)
            if self.stopped:
                return

    async def satisfy(self, request: Request) -> None:
        """Ask about a caption until its answers are enough; each is in the journal before it is looked at."""
        texts = self.answered.texts(request)
        done = False  # or it wouldn't be asked about
        while not done:
            if self.stopped:
                return
            with self.budget.reserved(request) as granted:
                if not granted:
                    self.stopped = f"the budget of {self.budget.limit_usd:g} USD is spent ({self.budget.spent():.2f})"
                    return
                try:
                    answer = await self.model.ask(request)
                except UnansweredError as error:
                    self.gave_up(error)
                    return
                line = to_line(request, answer)
                self.answered.add(await self.journal.append(line), line)
            self.in_a_row = 0
            texts.append(answer.text)
            done = is_done(request, texts, self.attempts)
        self.progress.add()

    def gave_up(self, error: UnansweredError) -> None:
        """Leave a caption for the next run; after many in a row, all that are left."""
        self.in_a_row += 1
        if self.in_a_row >= GIVE_UP_AFTER:
            self.stopped = f"the server doesn't answer: {error}"


class Progress(ProgressLine):
    """Requests, their rate, and what they cost."""

    def __init__(self, name: str, total: int, spent: Callable[[], str]) -> None:
        self.name, self.total, self.spent = name, total, spent
        self.done = self.before = 0
        super().__init__(logger)

    def add(self, before: bool = False) -> None:
        """A request is done, or was before."""
        self.done += 1
        self.before += before
        self.changed()

    def line(self) -> str:
        """How far a run is."""
        rate = (self.done - self.before) / self.elapsed_s()
        return f"{self.name}: {self.done:,} of {self.total:,} requests, {rate:.1f}/s{self.spent()}"
