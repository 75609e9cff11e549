"""Thread that runs the models, and sentences that are embedded together while many users search."""

import asyncio
import functools
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

MAX_BATCH_SENTENCES = 32
"""Maximum number of sentences that are embedded together."""

MAX_CACHED_SENTENCES = 1_000
"""Number of sentences whose vectors are kept: a change of the filters repeats the sentence."""


class ModelWorker:
    """Thread that calls one function at a time, in the order of the calls.

    It is a daemon thread, so that a long call doesn't delay the end of the process.
    """

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run_calls, name="models", daemon=True)
        self.thread.start()

    def _run_calls(self) -> None:
        while (item := self.calls.get()) is not None:
            future, call = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = call()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in the thread, and return its result or raise its exception. A call is left out if it is
        cancelled while it waits.
        """
        future: Future[T] = Future()
        self.calls.put((future, functools.partial(function, *arguments)))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the thread after the calls that wait."""
        self.calls.put(None)


class SentenceBatcher:
    """Embeds sentences in batches: those that arrive while the models are busy are embedded together.

    Args:
        embed: function that returns the vectors [Q, D] of sentences.
        worker: the thread that it is called in.
    """

    def __init__(self, embed: Callable[[Sequence[str]], NDArray[np.float32]], worker: ModelWorker) -> None:
        self.embed, self.worker = embed, worker
        self.vectors: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self.waiting: dict[str, asyncio.Future[NDArray[np.float32]]] = {}
        self.task: asyncio.Task[None] | None = None

    async def embed_sentence(self, sentence: str) -> NDArray[np.float32]:
        """Return the vector [D] of a sentence."""
        if sentence in self.vectors:
            self.vectors.move_to_end(sentence)
            return self.vectors[sentence]
        if sentence not in self.waiting:
            self.waiting[sentence] = asyncio.get_running_loop().create_future()
        future = self.waiting[sentence]
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self._embed_waiting())
        return await asyncio.shield(future)  # others may wait for the same sentence

    async def _embed_waiting(self) -> None:
        while self.waiting:
            sentences = list(self.waiting)[:MAX_BATCH_SENTENCES]
            futures = [self.waiting.pop(sentence) for sentence in sentences]
            try:
                vectors_QD = await self.worker.run(self.embed, sentences)
            except Exception as error:
                for future in futures:
                    future.set_exception(error)
                continue
            for sentence, future, vector_D in zip(sentences, futures, vectors_QD, strict=True):
                self.vectors[sentence] = vector_D
                future.set_result(vector_D)
            while len(self.vectors) > MAX_CACHED_SENTENCES:
                self.vectors.popitem(last=False)
