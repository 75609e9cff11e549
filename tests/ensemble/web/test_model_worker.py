"""Sentences of many users are embedded together, in one thread, and an error reaches those who asked."""

import asyncio
import threading

import numpy as np
import pytest

from data.errors import UserError
from ensemble.web.model_worker import MAX_BATCH_SENTENCES, MAX_CACHED_SENTENCES, ModelWorker, SentenceBatcher


class Embedder:
    """A function that embeds a sentence as its length, and waits for `gate` in the first call."""

    def __init__(self):
        self.batches, self.threads, self.gate = [], set(), threading.Event()

    def __call__(self, sentences):
        self.threads.add(threading.current_thread())
        if not self.batches:
            self.batches.append(sentences)
            self.gate.wait(30)
        else:
            self.batches.append(sentences)
        if "wrong" in sentences:
            raise UserError("wrong")
        return np.array([[len(sentence)] for sentence in sentences], np.float32)


def run(use):
    """Run a coroutine function with an embedder and its batcher."""

    async def main():
        embed, worker = Embedder(), ModelWorker()
        try:
            return await use(embed, SentenceBatcher(embed, worker), worker)
        finally:
            embed.gate.set()
            worker.close()
            worker.thread.join(30)

    return asyncio.run(main())


def test_sentences_that_arrive_while_the_models_are_busy_are_embedded_together():
    async def use(embed, batcher, _):
        tasks = [asyncio.create_task(batcher.embed_sentence("a" * length)) for length in (1, 2, 3, 4, 4, 3)]
        await asyncio.sleep(0.05)
        tasks += [asyncio.create_task(batcher.embed_sentence("a" * (10 + length))) for length in range(16)]
        await asyncio.sleep(0.05)
        embed.gate.set()
        vectors = await asyncio.gather(*tasks)
        lengths = [1, 2, 3, 4, 4, 3, *range(10, 26)]
        assert [vector.tolist() for vector in vectors] == [[length] for length in lengths]
        assert [len(batch) for batch in embed.batches] == [4, 16]
        assert len(embed.threads) == 1
        await batcher.embed_sentence("a")
        assert len(embed.batches) == 2

    run(use)


def test_batches_and_the_vectors_that_are_kept_are_bounded():
    async def use(embed, batcher, _):
        embed.gate.set()
        count = MAX_CACHED_SENTENCES + 10
        await asyncio.gather(*(batcher.embed_sentence(f"{number}") for number in range(count)))
        assert max(map(len, embed.batches)) == MAX_BATCH_SENTENCES
        assert len(batcher.vectors) == MAX_CACHED_SENTENCES

    run(use)


def test_an_error_reaches_those_whose_sentence_was_embedded_and_later_ones_are_answered():
    async def use(embed, batcher, _):
        embed.gate.set()
        for _ in range(2):
            with pytest.raises(UserError, match="wrong"):
                await batcher.embed_sentence("wrong")
        assert (await batcher.embed_sentence("right")).tolist() == [5]

    run(use)


def test_a_user_who_leaves_takes_nothing_from_others():
    async def use(embed, batcher, worker):
        leaving = asyncio.create_task(batcher.embed_sentence("shared"))
        staying = asyncio.create_task(batcher.embed_sentence("shared"))
        await asyncio.sleep(0.05)
        leaving.cancel()
        left = asyncio.create_task(worker.run(embed, ["never"]))
        await asyncio.sleep(0.05)
        left.cancel()
        await asyncio.sleep(0)
        embed.gate.set()
        assert (await staying).tolist() == [6]
        assert await worker.run(lambda: "next") == "next"
        assert ["never"] not in embed.batches

    run(use)
