"""Shards -> batches of (clip, caption) pairs.

What a batch holds depends on the seed, the epoch and the step alone: not on ranks, on loader processes, or on where an
interrupted training went on.

Shapes: S segments, B pairs.
"""

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.captions import caption_hash, choose, normalise
from data.errors import UserError
from data.leakage.exclusions import pairs_of
from data.loading.shared_buffers import Rooms
from data.schema import SAMPLE_RATE_HZ, Samples
from data.store.stored_split import StoredSplit
from data.waveform import PCM16_FULL_SCALE, AudioError, count_segments, crop_start, decode_file, to_pcm16

MASK_DRAWS = 4
"""Uniform numbers a segment brings along for SpecAugment: width and place, in frequency and in time."""

ORDER_STREAM, SAMPLE_STREAM = 0, 1
"""Keep the order of an epoch and what is drawn for each of its samples apart."""

PREFETCHED = 2
"""Batches that each of a loader's processes works ahead."""
SPARE_ROOMS = 2
"""Beyond those that are worked on: for the batch in use, and the one after it."""

Key = tuple[int, int]
"""An epoch and a pair."""


@dataclass(frozen=True)
class Batch:
    """Clips in segments, and a caption for each clip."""

    segments: Tensor  # [S, segment_samples] float32
    segments_per_clip: Tensor  # [B] int64
    mask_draws: Tensor  # [S, MASK_DRAWS] float32, uniform on [0, 1)
    captions: list[str]  # B, normalised
    clips: Tensor  # [B] int64; equal numbers are the same clip

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on `device`."""
        move = {name: getattr(self, name).to(device, non_blocking=True) for name in TENSORS}
        return Batch(captions=self.captions, **move)

    def split(self, most_pairs: int) -> list["Batch"]:
        """Parts of up to so many pairs, which share the batch's memory."""
        firsts = range(0, len(self.captions), most_pairs)
        sizes = self.segments_per_clip.split(most_pairs)
        segments = [int(part.sum()) for part in sizes]
        return [
            Batch(own, size, draws, self.captions[first : first + most_pairs], clips)
            for first, own, size, draws, clips in zip(
                firsts,
                self.segments.split(segments),
                sizes,
                self.mask_draws.split(segments),
                self.clips.split(most_pairs),
                strict=True,
            )
        ]


TENSORS = ("segments", "segments_per_clip", "mask_draws", "clips")


def fill_segments(split: StoredSplit, clip: int, start: int, count: int, segments: NDArray[np.float32]) -> None:
    """Decode a window of a clip into segments that lie one after the other; zeros follow its end.

    Of a window whose rest is too short for a segment, only the samples that have room are decoded.
    """
    flat = segments.reshape(-1)
    kept = min(count, len(flat))
    split.decode_window(clip, start, flat[:kept])
    flat[kept:] = 0


class Pairs(Dataset[Batch]):
    """Every (clip, caption) pair of the splits, in the order of splits, clip ids and captions.

    A pair is asked for by (epoch, pair), so that its crop and its paraphrase don't depend on who asks or when. With
    `paraphrase_probability` 0 the tables of paraphrases aren't opened; else each split needs one (UserError), and a
    caption that it lacks stands for itself: `without_paraphrases` is the number of pairs with such a caption. Clips
    whose ids are in `excluded` are left out.

    Nothing here is a Python object a clip or a pair: both are rows of the splits' memory-mapped indices, and of their
    tables of paraphrases.
    """

    def __init__(
        self,
        splits: Sequence[StoredSplit],
        segment_s: float,
        longest_s: float,
        paraphrase_probability: float,
        seed: int,
        excluded: Collection[str] = (),
    ) -> None:
        self.splits = splits
        self.segment_samples = round(segment_s * SAMPLE_RATE_HZ)
        self.longest_samples = round(longest_s * SAMPLE_RATE_HZ)
        self.paraphrase_probability = paraphrase_probability
        self.seed = seed
        kept = [pairs_of(split, excluded) for split in splits]
        self.split_of_pair = np.repeat(np.arange(len(splits)), [len(clips) for clips, _ in kept])
        self.clip_of_pair = np.concatenate([clips for clips, _ in kept])
        self.caption_of_pair = np.concatenate([captions for _, captions in kept])
        self.first_clip = np.cumsum([0, *(len(split.index) for split in splits)])
        self.variants: list[pa.Array] = []  # by split
        self.variants_of_pair = np.full(len(self.clip_of_pair), -1)  # a place in its split's, -1 where there is none
        self.without_paraphrases = 0
        if paraphrase_probability > 0:
            self._find_paraphrases()
            self.without_paraphrases = int((self.variants_of_pair < 0).sum())

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.clip_of_pair)

    def captions(self) -> Iterator[str]:
        """Each pair's caption, as published."""
        for split, flat in enumerate(self._flat_captions):
            yield from flat.take(pa.array(self.caption_of_pair[self.split_of_pair == split])).to_pylist()

    def _find_paraphrases(self) -> None:
        """Find each pair's paraphrases. A UserError if all of a split's captions have none."""
        for number, split in enumerate(self.splits):
            table = split.required_paraphrases()
            columns = (table[name].to_pylist() for name in ("clip_id", "caption_hash"))
            places = {key: place for place, key in enumerate(zip(*columns, strict=True))}  # gone once they are found
            pairs = np.flatnonzero(self.split_of_pair == number)
            captions = self._flat_captions[number].take(pa.array(self.caption_of_pair[pairs])).to_pylist()
            keys = zip(self.clip_ids(pairs), map(caption_hash, captions), strict=True)
            found = np.array([places.get(key, -1) for key in keys], np.int64)
            if len(pairs) and (found < 0).all():
                raise UserError(
                    f"none of {split.name}'s paraphrases is about a caption that it has now: set the paraphrase "
                    "probability to 0, or have them written anew: "
                    f"python data/paraphrase.py {split.name.partition('/')[0]} --store {split.store}"
                )
            self.variants_of_pair[pairs] = found
            self.variants.append(table["variants"].combine_chunks())

    def clip_ids(self, pairs: NDArray[np.int64]) -> list[str]:
        """The ids of some pairs' clips."""
        rows = zip(self.split_of_pair[pairs].tolist(), self.clip_of_pair[pairs].tolist(), strict=True)
        return [self.splits[split].index["clip_id"][clip].as_py() for split, clip in rows]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_flat_captions"}

    @cached_property
    def _flat_captions(self) -> list[pa.StringArray]:
        return [split.index["captions"].combine_chunks().flatten() for split in self.splits]

    def __getitem__(self, epoch_and_pair: Key) -> Batch:
        """One pair as its epoch sees it, as a batch."""
        return self.batch([epoch_and_pair])

    def batch(self, epochs_and_pairs: Sequence[Key], make_room: Callable[[int], Tensor] | None = None) -> Batch:
        """Pairs as their epochs see them. Each clip is decoded straight into the batch.

        `make_room` gives the memory for a number of segments, [number, segment_samples].
        """
        draws = [np.random.default_rng([self.seed, SAMPLE_STREAM, epoch, pair]) for epoch, pair in epochs_and_pairs]
        uniform = [rng.random(3) for rng in draws]
        pairs = np.array([pair for _, pair in epochs_and_pairs])
        splits, clips = self.split_of_pair[pairs].tolist(), self.clip_of_pair[pairs].tolist()
        lengths = self.lengths(pairs)
        counts = [min(length, self.longest_samples) for length in lengths]
        sizes = [count_segments(count, self.segment_samples) for count in counts]
        segments = make_room(sum(sizes)) if make_room else torch.empty(sum(sizes), self.segment_samples)
        captions, first = [], 0
        for row, pair in enumerate(pairs.tolist()):
            crop_draw, swap_draw, variant_draw = uniform[row]
            start = crop_start(lengths[row], self.longest_samples, crop_draw)
            room = segments[first : first + sizes[row]].numpy()
            fill_segments(self.splits[splits[row]], clips[row], start, counts[row], room)
            first += sizes[row]
            captions.append(normalise(self.wording(pair, swap_draw, variant_draw)))
        mask_draws = [rng.random((size, MASK_DRAWS), dtype=np.float32) for rng, size in zip(draws, sizes, strict=True)]
        return Batch(
            segments=segments,
            segments_per_clip=torch.tensor(sizes),
            mask_draws=torch.from_numpy(np.concatenate(mask_draws)),
            captions=captions,
            clips=torch.from_numpy(self.first_clip[splits] + clips),
        )

    def wording(self, pair: int, swap_draw: float, variant_draw: float) -> str:
        """A pair's caption, or a paraphrase of it."""
        split = int(self.split_of_pair[pair])
        caption: str = self._flat_captions[split][int(self.caption_of_pair[pair])].as_py()
        place = int(self.variants_of_pair[pair])
        if place < 0:
            return caption
        variants = self.variants[split][place].as_py()
        return choose(caption, variants, self.paraphrase_probability, swap_draw, variant_draw)

    def epoch_batches(self, epoch: int, batch_size: int) -> list[NDArray[np.int64]]:
        """The pairs of each global batch of an epoch: every pair once; the last batch may be smaller."""
        order = np.random.default_rng([self.seed, ORDER_STREAM, epoch]).permutation(len(self))
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def lengths(self, pairs: NDArray[np.int64]) -> list[int]:
        """How many samples each of some pairs' clips has."""
        rows = zip(self.split_of_pair[pairs].tolist(), self.clip_of_pair[pairs].tolist(), strict=True)
        return [self.splits[split].num_samples[clip].item() for split, clip in rows]

    def num_segments(self, pairs: NDArray[np.int64]) -> list[int]:
        """How many segments each of some pairs has."""
        counts = (min(length, self.longest_samples) for length in self.lengths(pairs))
        return [count_segments(count, self.segment_samples) for count in counts]

    def shares(self, batch: NDArray[np.int64], world_size: int) -> list[NDArray[np.int64]]:
        """The pairs of a global batch that each rank computes: so that all have about as many segments to embed."""
        if world_size == 1:
            return [batch]
        return [batch[places] for places in share_out(self.num_segments(batch), world_size)]

    def load_epoch(
        self, epoch: int, batch_size: int, rank: int, world_size: int, loader_workers: int, first_batch: int = 0
    ) -> Iterator[Batch]:
        """This rank's share of each global batch of an epoch, from `first_batch` on.

        A rank that a small last batch leaves without a pair gets a copy of the batch's first one, so that it can take
        part in the step; `shares` says which pairs count.
        """
        batches = self.epoch_batches(epoch, batch_size)[first_batch:]
        most_segments = count_segments(self.longest_samples, self.segment_samples)
        most_of_all = max(map(len, batches), default=0) * most_segments
        room_samples = (-(-most_of_all // world_size) + most_segments) * self.segment_samples
        shares = (self.shares(batch, world_size)[rank] for batch in batches)
        drawn = (share if len(share) else batch[:1] for batch, share in zip(batches, shares, strict=True))
        keys = ([(epoch, pair) for pair in pairs.tolist()] for pairs in drawn)
        if not loader_workers:
            return self._load_here(keys, Rooms(room_samples))
        if any(split.store.is_remote for split in self.splits):
            # What an object store's client has started in this process doesn't survive a fork.
            options: dict[str, Any] = {"num_workers": loader_workers, "multiprocessing_context": "spawn"}
            return iter(DataLoader(_Whole(self), batch_sampler=cast(Any, keys), collate_fn=_as_it_is, **options))
        rooms = Rooms(room_samples, loader_workers * PREFETCHED + SPARE_ROOMS)
        return self._load_elsewhere(keys, rooms, loader_workers)

    def _load_here(self, keys: Iterable[list[Key]], rooms: Rooms) -> Iterator[Batch]:
        for wanted in keys:
            yield self.batch(wanted, partial(self._in_room, rooms, rooms.take()))

    def _in_room(self, rooms: Rooms, room: int, number: int) -> Tensor:
        return rooms.tensor(room, (number, self.segment_samples))

    def _load_elsewhere(self, keys: Iterable[list[Key]], rooms: Rooms, loader_workers: int) -> Iterator[Batch]:
        # Only rooms that are there when the processes are forked can be shared with them.
        requests = ((rooms.take() if rooms.free else None, wanted) for wanted in keys)
        loader = DataLoader(
            _IntoRooms(self, rooms),
            batch_sampler=cast(Any, requests),
            collate_fn=_as_it_is,
            num_workers=loader_workers,
            multiprocessing_context="fork",
            prefetch_factor=PREFETCHED,
        )
        for room, packed in loader:
            if room is None:
                yield packed
                continue
            sizes, mask_draws, captions, clips = packed
            yield Batch(
                segments=self._in_room(rooms, room, int(sizes.sum())),
                segments_per_clip=torch.from_numpy(sizes),
                mask_draws=torch.from_numpy(mask_draws),
                captions=captions,
                clips=torch.from_numpy(clips),
            )


class _Whole(Dataset[Batch]):
    """Batches by their keys."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    def __getitems__(self, keys: list[Key]) -> Batch:
        return self.pairs.batch(keys)


class _IntoRooms(Dataset[Any]):
    """Batches by a room and their keys: what fills the room stays there, the rest travels as arrays, which is quick."""

    def __init__(self, pairs: Pairs, rooms: Rooms) -> None:
        self.pairs, self.rooms = pairs, rooms

    def __getitems__(self, request: tuple[int | None, list[Key]]) -> tuple[int | None, Any]:
        room, keys = request
        if room is None:
            return None, self.pairs.batch(keys)
        samples = self.pairs.segment_samples
        batch = self.pairs.batch(keys, lambda number: torch.from_numpy(self.rooms.array(room, (number, samples))))
        tensors = (batch.segments_per_clip, batch.mask_draws, batch.clips)
        sizes, mask_draws, clips = (tensor.numpy() for tensor in tensors)
        return room, (sizes, mask_draws, batch.captions, clips)


def _as_it_is(batch: Any) -> Any:
    """What the datasets here give is a batch already."""
    return batch


def share_out(sizes: Sequence[int], world_size: int) -> list[list[int]]:
    """The places of items that each rank gets, ascending: the largest first, each to the rank that has least so far.

    That is Graham's list scheduling by longest processing time (1969): no rank has more than its part of all and one
    item.
    """
    ranks = [(0, rank) for rank in range(world_size)]
    places: list[list[int]] = [[] for _ in range(world_size)]
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        load, rank = ranks[0]
        places[rank].append(place)
        heapq.heapreplace(ranks, (load + sizes[place], rank))
    return [sorted(own) for own in places]


def load_clips(split: StoredSplit, segment_s: float, longest_s: float, batch_size: int) -> Iterator[Batch]:
    """A split's clips in their order, without captions, each cut to its first `longest_s`: for embedding."""
    segment_samples, longest_samples = round(segment_s * SAMPLE_RATE_HZ), round(longest_s * SAMPLE_RATE_HZ)
    for first in range(0, len(split.index), batch_size):
        clips = range(first, min(first + batch_size, len(split.index)))
        counts = [min(split.num_samples[clip].item(), longest_samples) for clip in clips]
        sizes = [count_segments(count, segment_samples) for count in counts]
        segments = torch.empty(sum(sizes), segment_samples)
        for clip, count, part in zip(clips, counts, segments.split(sizes), strict=True):
            fill_segments(split, clip, 0, count, part.numpy())
        yield without_captions(segments, sizes, clips)


def load_files(
    paths: Sequence[Path], segment_s: float, longest_s: float, batch_size: int, refuse: Callable[[Path, str], None]
) -> Iterator[Batch]:
    """Audio files in their order, cut and rounded as a store would keep them; `clips` are their places in `paths`.

    No more than the first `longest_s` is decoded. `refuse` is told of what can't be, and why; it is left out.
    """
    segment_samples, longest_samples = round(segment_s * SAMPLE_RATE_HZ), round(longest_s * SAMPLE_RATE_HZ)
    for first in range(0, len(paths), batch_size):
        clips, parts = [], []
        for clip in range(first, min(first + batch_size, len(paths))):
            try:
                samples = beginning(paths[clip], longest_samples)
            except AudioError as error:
                refuse(paths[clip], str(error))
                continue
            part = torch.zeros(count_segments(len(samples), segment_samples), segment_samples)
            kept = min(len(samples), part.numel())
            part.view(-1)[:kept] = torch.from_numpy(samples[:kept])
            clips.append(clip)
            parts.append(part)
        if clips:
            yield without_captions(torch.cat(parts), [len(part) for part in parts], clips)


def beginning(path: Path, longest_samples: int) -> Samples:
    """An audio file's first samples, rounded to 16 bits. Raises AudioError where they can't be decoded."""
    blocks, num_samples = [], 0
    for block in decode_file(path):
        blocks.append(to_pcm16(block[: longest_samples - num_samples]))
        num_samples += len(blocks[-1])
        if num_samples >= longest_samples:
            break
    return np.concatenate(blocks) * np.float32(1 / PCM16_FULL_SCALE)


def without_captions(segments: Tensor, sizes: Sequence[int], clips: Sequence[int]) -> Batch:
    """A batch for embedding: nothing in it is drawn."""
    return Batch(
        segments=segments,
        segments_per_clip=torch.tensor(sizes),
        mask_draws=torch.zeros(len(segments), MASK_DRAWS),
        captions=[""] * len(clips),
        clips=torch.tensor(clips),
    )
