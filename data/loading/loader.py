"""Loader of an epoch's batches, decoded in this process or in worker processes with identical results."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from data.loading.batch import Batch
from data.loading.pairs import ClipCaptionDataset, PairKey
from data.loading.sampler import split_among_ranks
from data.loading.shared_buffers import SharedBuffers
from data.waveform import count_segments

PREFETCH_FACTOR = 2
"""Number of batches that each loader process prepares in advance."""
NUM_SPARE_BUFFERS = 2
"""Number of buffers beyond those being filled: for the batch in use and the next one."""


def load_epoch(
    pairs: ClipCaptionDataset,
    epoch: int,
    batches: Sequence[NDArray[np.int64]],
    rank: int = 0,
    world_size: int = 1,
    loader_workers: int = 0,
) -> Iterator[Batch]:
    """Return an iterator over the batches of one rank in an epoch: the rank's share of the pairs of each global batch
    in `batches` (arrays of pair indices). `world_size` is the number of ranks, and `loader_workers` the number of
    processes that decode.

    If a small last batch leaves a rank without pairs, the rank gets a copy of the batch's first pair, so that it can
    take part in the step. The copy must not count in the loss: `split_among_ranks` returns the shares without copies.

    Args:
        pairs: Pairs to decode.
        epoch: Number of the epoch, which determines crops and paraphrases.
        batches: Global batches that `order_epoch` returns, or the remaining ones of a resumed epoch.
        rank: Rank of this training worker.
        world_size: Number of training workers.
        loader_workers: Number of processes that decode; 0 decodes in this process, as does a dataset without audio.
    """
    shares = (split_among_ranks(pairs, batch, world_size)[rank] for batch in batches)
    rank_pairs = (share if len(share) else batch[:1] for batch, share in zip(batches, shares, strict=True))
    keys = ([(epoch, pair) for pair in numbers.tolist()] for numbers in rank_pairs)
    if not pairs.reads_audio:
        return map(pairs.decode, keys)
    max_segments_per_clip = count_segments(pairs.longest_samples, pairs.segment_samples)
    max_segments_per_batch = max(map(len, batches), default=0) * max_segments_per_clip
    allocate = partial(
        SharedBuffers, -(-max_segments_per_batch // world_size) + max_segments_per_clip, pairs.segment_samples
    )
    if not loader_workers:
        buffers = allocate()
        return (pairs.decode(batch_keys, partial(buffers.tensor, buffers.take())) for batch_keys in keys)
    if any(split.store.is_remote for split in pairs.splits):
        # Threads that an object store's client has started in this process don't survive a fork.
        return load_in_processes(pairs, keys, allocate(), loader_workers, "spawn")
    # Only buffers that exist when the processes are forked can be shared with them.
    return load_in_processes(
        pairs, keys, allocate(loader_workers * PREFETCH_FACTOR + NUM_SPARE_BUFFERS), loader_workers, "fork"
    )


def load_in_processes(
    pairs: ClipCaptionDataset, keys: Iterator[list[PairKey]], buffers: SharedBuffers, num_processes: int, start: str
) -> Iterator[Batch]:
    """Yield a batch of `pairs` for each list of keys, pairs of epoch and pair index, in order, decoded by
    `num_processes` worker processes. A worker decodes into a shared buffer if one is free; otherwise the batch is
    copied between processes. `start` is the method of multiprocessing that starts them, such as 'fork'.
    """
    loader = DataLoader(
        _BatchRequests(pairs, buffers),
        batch_sampler=cast(Any, ((buffers.take() if buffers.free else None, batch_keys) for batch_keys in keys)),
        collate_fn=_return_batch,
        num_workers=num_processes,
        multiprocessing_context=start,
        prefetch_factor=PREFETCH_FACTOR,
    )
    for buffer, packed in loader:
        if buffer is None:
            yield packed
            continue
        sizes, mask_draws, clips, num_samples = map(torch.from_numpy, packed[:4])
        yield Batch(buffers.tensor(buffer, int(sizes.sum())), sizes, mask_draws, packed[4], clips, num_samples)


class _BatchRequests(Dataset[Any]):
    """Dataset whose items are batches. A request consists of the number of a shared buffer, or None if none is free,
    and of the keys of the pairs (epoch and pair index). An item is the same number and the batch. With a buffer,
    segments are decoded into it, and only the rest of the batch is returned, as arrays and a list of captions.
    """

    def __init__(self, pairs: ClipCaptionDataset, buffers: SharedBuffers) -> None:
        self.pairs, self.buffers = pairs, buffers

    def __getitems__(self, request: tuple[int | None, list[PairKey]]) -> tuple[int | None, Any]:
        buffer, keys = request
        if buffer is None:
            return None, self.pairs.decode(keys)
        batch = self.pairs.decode(keys, lambda number: torch.from_numpy(self.buffers.array(buffer, number)))
        tensors = (batch.segments_per_clip, batch.mask_draws, batch.clips, batch.count_samples())
        arrays = (tensor.numpy() for tensor in tensors)
        return buffer, (*arrays, batch.captions)


def _return_batch(batch: Any) -> Any:
    """Return an item of the dataset unchanged, as collate function: it already is a batch."""
    return batch
