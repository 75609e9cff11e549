"""The batches of an epoch, decoded in this process or, the same ones, in others."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from data.loading.batch import Batch
from data.loading.pairs import ClipCaptionDataset, Key
from data.loading.sampler import split_among_ranks
from data.loading.shared_buffers import SharedBuffers
from data.waveform import count_segments

PREFETCHED = 2
"""Batches that each of a loader's processes works ahead."""
SPARE_BUFFERS = 2
"""Beyond those that are worked on: for the batch in use, and the one after it."""


def load_epoch(
    pairs: ClipCaptionDataset,
    epoch: int,
    batches: Sequence[NDArray[np.int64]],
    rank: int = 0,
    world_size: int = 1,
    loader_workers: int = 0,
) -> Iterator[Batch]:
    """Return this rank's share of each global batch: all those that `order_epoch` returns, or those still to come.

    A rank that a small last batch leaves without a pair gets a copy of the batch's first one, so that it can take
    part in the step; `split_among_ranks` says which pairs count.
    """
    shares = (split_among_ranks(pairs, batch, world_size)[rank] for batch in batches)
    own = (share if len(share) else batch[:1] for batch, share in zip(batches, shares, strict=True))
    keys = ([(epoch, pair) for pair in numbers.tolist()] for numbers in own)
    most_segments = count_segments(pairs.longest_samples, pairs.segment_samples)
    most_of_all = max(map(len, batches), default=0) * most_segments
    allocate = partial(SharedBuffers, -(-most_of_all // world_size) + most_segments, pairs.segment_samples)
    if not loader_workers:
        buffers = allocate()
        return (pairs.decode(wanted, partial(buffers.tensor, buffers.take())) for wanted in keys)
    if any(split.store.is_remote for split in pairs.splits):
        # What an object store's client has started in this process doesn't survive a fork.
        return load_in_processes(pairs, keys, allocate(), loader_workers, "spawn")
    # Only buffers that are there when the processes are forked can be shared with them.
    return load_in_processes(pairs, keys, allocate(loader_workers * PREFETCHED + SPARE_BUFFERS), loader_workers, "fork")


def load_in_processes(
    pairs: ClipCaptionDataset, keys: Iterator[list[Key]], buffers: SharedBuffers, num_processes: int, start: str
) -> Iterator[Batch]:
    """Yield batches that other processes decode, into a buffer where one is free; without one, a batch is copied."""
    loader = DataLoader(
        _Requests(pairs, buffers),
        batch_sampler=cast(Any, ((buffers.take() if buffers.free else None, wanted) for wanted in keys)),
        collate_fn=_return_batch,
        num_workers=num_processes,
        multiprocessing_context=start,
        prefetch_factor=PREFETCHED,
    )
    for buffer, packed in loader:
        if buffer is None:
            yield packed
            continue
        sizes, mask_draws, clips = map(torch.from_numpy, packed[:3])
        yield Batch(buffers.tensor(buffer, int(sizes.sum())), sizes, mask_draws, packed[3], clips)


class _Requests(Dataset[Any]):
    """Batches by a buffer and their keys: segments stay in the buffer, the rest travels as arrays, which is quick."""

    def __init__(self, pairs: ClipCaptionDataset, buffers: SharedBuffers) -> None:
        self.pairs, self.buffers = pairs, buffers

    def __getitems__(self, request: tuple[int | None, list[Key]]) -> tuple[int | None, Any]:
        buffer, keys = request
        if buffer is None:
            return None, self.pairs.decode(keys)
        batch = self.pairs.decode(keys, lambda number: torch.from_numpy(self.buffers.array(buffer, number)))
        arrays = (tensor.numpy() for tensor in (batch.segments_per_clip, batch.mask_draws, batch.clips))
        return buffer, (*arrays, batch.captions)


def _return_batch(batch: Any) -> Any:
    """Return what the datasets here give: it is a batch already."""
    return batch
