"""Asynchronous requests about all captions of a split, many at a time."""

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from data.errors import UserError
from data.paraphrasing.chat_client import ParaphraseModel, UnansweredError
from data.paraphrasing.job import INTERRUPTED, AnswerLog, Budget, Request, is_done, to_line
from data.paraphrasing.journal import Journal
from data.runtime.progress import ProgressLine

logger = logging.getLogger("chorale.paraphrase")

MAX_FAILURES_IN_A_ROW = 16
"""Maximum number of consecutive unanswered requests before the run ends."""

MAX_LOGGED_FAILURES = 20
"""Maximum number of unanswered requests that are logged one by one."""


@dataclass
class ParaphraseRun:
    """Run of requests to a model: each caption is asked about until it has enough paraphrases or `attempts`
    answers. All answers are written to the journal.
    """

    model: ParaphraseModel
    journal: Journal
    answer_log: AnswerLog
    budget: Budget
    attempts: int
    progress: "ParaphraseProgress"
    stopped: str = ""  # reason why no further requests are sent
    interrupts: int = 0
    unanswered: int = 0
    consecutive_failures: int = 0
    defect: Exception | None = None  # first unexpected error

    def ask_all(self, requests: Iterator[Request], concurrency: int) -> None:
        """Send the requests that earlier runs have not completed, at most `concurrency` at a time; return when
        all are done or the run is stopped.

        If the run ends early, requests in progress are completed and their answers kept. A second Ctrl-C cancels these
        requests and raises KeyboardInterrupt. Unexpected errors are raised at the end of the run.
        """
        try:
            asyncio.run(self._ask_remaining(requests, concurrency))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None

    async def _ask_remaining(self, requests: Iterator[Request], concurrency: int) -> None:
        todo = (request for request in requests if not self.is_done(request))
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task

        def interrupt() -> None:
            self.interrupts += 1
            self.stop(INTERRUPTED)
            if self.interrupts > 1:
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt)
        async with self.model, asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(self.ask_from_queue(todo))
        if self.defect:
            raise self.defect

    def stop(self, reason: str) -> None:
        """End the run early: no further requests are sent, and those in progress are completed. `reason` is
        kept in `stopped`, unless the run was stopped before.
        """
        self.stopped = self.stopped or reason
        self.model.stop()

    def is_done(self, request: Request) -> bool:
        """Return whether the answers of earlier runs to a request are enough; if so, count the request in the
        progress.
        """
        done = self.answer_log.is_done(request, self.attempts)
        if done:
            self.progress.count_request(done_before=True)
        return done

    async def ask_from_queue(self, todo: Iterator[Request]) -> None:
        """Take one request after the other from `todo`, and send each until it is done or the run is stopped.
        An unanswered request is left to the next run; any other error stops the run, and is not raised here.
        """
        for request in todo:
            if self.stopped:
                return
            try:
                await self.ask_until_done(request)
            except UnansweredError as error:
                self.record_failure(request, error)
            except UserError as error:
                self.stop(str(error))
            except OSError as error:
                problem = f"{self.journal.path} can't be written ({error.strerror or error})"
                self.stop(f"{problem}; re-run the same command to resume")
            except Exception as error:
                self.defect = self.defect or error
                self.stop(repr(error))

    async def ask_until_done(self, request: Request) -> None:
        """Send a request repeatedly until its answers are enough, the budget is spent or the run is stopped.
        Each answer is written to the journal before it is used.
        """
        texts = self.answer_log.read_texts(request)
        done = False  # otherwise the caption would not be in the queue
        while not done:
            if self.stopped:
                return
            with self.budget.reserve(request) as granted:
                if not granted:
                    # Requests in progress continue: their cost is reserved.
                    self.stopped = self.stopped or self.budget.exhausted_reason()
                    return
                answer = await self.model.ask(request)
                line = to_line(request, answer)
                self.answer_log.add_line(await self.journal.append(line), line)
            self.consecutive_failures = 0
            texts.append(answer.text)
            done = is_done(request, texts, self.attempts)
        self.progress.count_request()

    def record_failure(self, request: Request, error: UnansweredError) -> None:
        """Log a request that the model did not answer; the next run sends it again. After MAX_FAILURES_IN_A_ROW
        consecutive failures, the run is stopped.
        """
        if self.stopped:
            return
        self.unanswered += 1
        self.consecutive_failures += 1
        if self.unanswered <= MAX_LOGGED_FAILURES:
            logger.warning("not answered: %r: %s", request.caption, error)
        if self.consecutive_failures >= MAX_FAILURES_IN_A_ROW:
            self.stop(f"the server doesn't answer: {error}")


class ParaphraseProgress(ProgressLine):
    """Progress line with the number of requests that are done, their rate, and the cost so far."""

    def __init__(self, name: str, total: int, format_spent: Callable[[], str]) -> None:
        self.name, self.total, self.format_spent = name, total, format_spent
        self.done = self.done_before = 0
        super().__init__(logger)

    def count_request(self, done_before: bool = False) -> None:
        """Count a request as done. With `done_before`, an earlier run has completed it, so it isn't included in
        the rate.
        """
        self.done += 1
        self.done_before += done_before
        self.log_if_due()

    def line(self) -> str:
        """Return the text of the progress line."""
        rate = (self.done - self.done_before) / self.elapsed_s()
        return f"{self.name}: {self.done:,} of {self.total:,} requests, {rate:.1f}/s{self.format_spent()}"
