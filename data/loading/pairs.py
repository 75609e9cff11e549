"""Dataset of the (clip, caption) pairs of splits: captions, paraphrases, and decoding into batches.

The crop and the wording of a pair depend only on the seed, the epoch and the pair: not on ranks, loader processes, or
the step at which an interrupted training was resumed.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from data.captions import choose_wording, hash_caption, normalise
from data.errors import UserError
from data.leakage.exclusions import select_pairs
from data.loading.augmentation import NO_AUGMENTATION, Augmentation, draw_change
from data.loading.batch import NUM_MASK_DRAWS, Batch, count_samples_by_segment, fill_segments
from data.loading.filters import draw_filter, filter_samples
from data.schema import SAMPLE_RATE_HZ
from data.store.stored_split import StoredSplit
from data.waveform import compute_crop_start, count_segments

ORDER_STREAM, SAMPLE_STREAM, CHANGE_STREAM = 0, 1, 2
"""Random streams: of the order of an epoch, and of the draws for each sample and for its augmentation."""

PairKey = tuple[int, int]
"""Epoch and index of a pair."""


class ClipCaptionDataset(Dataset[Batch]):
    """Dataset of all (clip, caption) pairs of splits, in the order of splits, clip ids and captions.

    Items are batches of one pair, requested by (epoch, pair), so that crop and paraphrase don't depend on the order of
    requests. No Python object is kept per clip or pair: both are rows of the splits' memory-mapped indices and tables
    of paraphrases.

    Args:
        splits: Splits whose pairs are used.
        segment_s: Length of a segment in seconds.
        longest_s: Maximum length of a crop in seconds; of a longer clip a random window is used.
        paraphrase_probability: Probability of replacing a caption with one of its paraphrases. If 0, the tables of
            paraphrases aren't opened. A caption without paraphrases is never replaced; `without_paraphrases`
            counts such pairs.
        seed: Seed of crops, paraphrases and augmentation.
        excluded: Ids of clips to leave out.
        augmentation: Random filters and gains of clips, and mixtures of pairs.
        reads_audio: Whether clips are decoded. Otherwise, segments of batches have no samples, [num_segments, 0]; pairs
            can't be augmented then.

    Raises:
        UserError: If paraphrases are needed and a split has none.
    """

    def __init__(
        self,
        splits: Sequence[StoredSplit],
        segment_s: float,
        longest_s: float,
        paraphrase_probability: float,
        seed: int,
        excluded: Collection[str] = (),
        augmentation: Augmentation = NO_AUGMENTATION,
        reads_audio: bool = True,
    ) -> None:
        self.splits, self.augmentation, self.reads_audio = splits, augmentation, reads_audio
        self.segment_samples = round(segment_s * SAMPLE_RATE_HZ)
        self.longest_samples = round(longest_s * SAMPLE_RATE_HZ)
        self.paraphrase_probability = paraphrase_probability
        self.seed = seed
        kept = [select_pairs(split, excluded) for split in splits]
        self.split_of_pair = np.repeat(np.arange(len(splits)), [len(clips) for clips, _ in kept])
        self.clip_of_pair = np.concatenate([clips for clips, _ in kept])
        self.caption_of_pair = np.concatenate([captions for _, captions in kept])
        self.first_clip = np.cumsum([0, *(len(split.index) for split in splits)])
        self.variants: list[pa.Array] = []  # by split; each is a list of paraphrases per row of the split's table
        self.variants_of_pair = np.full(len(self.clip_of_pair), -1)  # row in `variants` of its split, -1 if none
        self.without_paraphrases = 0
        if paraphrase_probability > 0:
            self._find_paraphrases()
            self.without_paraphrases = int((self.variants_of_pair < 0).sum())

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.clip_of_pair)

    def iter_captions(self) -> Iterator[str]:
        """Yield the caption of each pair in order, as published."""
        for split, flat in enumerate(self._flat_captions):
            yield from flat.take(pa.array(self.caption_of_pair[self.split_of_pair == split])).to_pylist()

    def _find_paraphrases(self) -> None:
        """Look up the paraphrases of each pair's caption. Store the column of paraphrases of each split's table in
        `variants`, and the row of each pair in its split's column in `variants_of_pair`, -1 if its caption has none.
        Raises UserError if no caption of a split has any.
        """
        for number, split in enumerate(self.splits):
            table = split.require_paraphrases_table()
            columns = (table[name].to_pylist() for name in ("clip_id", "caption_hash"))
            row_by_key = {key: row for row, key in enumerate(zip(*columns, strict=True))}  # freed after this lookup
            pairs = np.flatnonzero(self.split_of_pair == number)
            captions = self._flat_captions[number].take(pa.array(self.caption_of_pair[pairs])).to_pylist()
            keys = zip(self.get_clip_ids(pairs), map(hash_caption, captions), strict=True)
            rows = np.array([row_by_key.get(key, -1) for key in keys], np.int64)
            if len(pairs) and (rows < 0).all():
                raise UserError(
                    f"none of {split.name}'s paraphrases matches one of its captions: set the paraphrase "
                    "probability to 0, or generate paraphrases again: "
                    f"python data/paraphrase.py {split.name.partition('/')[0]} --store {split.store}"
                )
            self.variants_of_pair[pairs] = rows
            self.variants.append(table["variants"].combine_chunks())

    def get_clip_ids(self, pairs: NDArray[np.int64]) -> list[str]:
        """Return the clip id of each pair, given as an array of pair indices."""
        rows = zip(self.split_of_pair[pairs].tolist(), self.clip_of_pair[pairs].tolist(), strict=True)
        return [self.splits[split].index["clip_id"][clip].as_py() for split, clip in rows]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_flat_captions"}

    @cached_property
    def _flat_captions(self) -> list[pa.StringArray]:
        return [split.index["captions"].combine_chunks().flatten() for split in self.splits]

    def __getitem__(self, epoch_and_pair: PairKey) -> Batch:
        """Return a batch of a single pair, with the crop and the caption that the pair has in the epoch."""
        return self.decode([epoch_and_pair])

    def decode(self, keys: Sequence[PairKey], allocate: Callable[[int], Tensor] | None = None) -> Batch:
        """Return a batch of the pairs with these keys, (epoch, pair index). A pair's crop and its wording, the caption
        or a paraphrase, depend on the epoch. `allocate` may provide the memory for the batch's segments.

        Each clip is decoded directly into the batch. In `clips`, a mixture of two pairs has a number of its own, since
        other captions of its clips don't describe it. `allocate` returns the memory for a number of segments,
        [number, segment_samples]; by default it is newly allocated.
        """
        draws = [np.random.default_rng([self.seed, SAMPLE_STREAM, epoch, pair]) for epoch, pair in keys]
        uniform = [rng.random(3).tolist() for rng in draws]
        pairs = np.array([pair for _, pair in keys])
        splits, clips = self.split_of_pair[pairs].tolist(), self.clip_of_pair[pairs].tolist()
        lengths = self.get_num_samples(pairs)
        counts = [min(length, self.longest_samples) for length in lengths]
        sizes = [count_segments(count, self.segment_samples) for count in counts]
        segment_samples = self.segment_samples if self.reads_audio else 0
        segments = allocate(sum(sizes)) if allocate else torch.empty(sum(sizes), segment_samples)
        captions, first = [], 0
        clip_numbers = self.first_clip[splits] + clips
        for row, (epoch, pair) in enumerate(keys):
            if not self.reads_audio:
                captions.append(normalise(self.choose_caption(pair, *uniform[row][1:])))
                continue
            pair_segments = segments[first : first + sizes[row]].numpy()
            captions.append(self.fill_pair(pair, lengths[row], uniform[row], pair_segments))
            first += sizes[row]
            if self.augmentation != NO_AUGMENTATION:
                samples = pair_segments.reshape(-1)[: counts[row]]
                captions[row], is_mixed = self.change_pair(epoch, pair, samples, captions[row])
                clip_numbers[row] = self.first_clip[-1] + pair if is_mixed else clip_numbers[row]
        mask_draws = [
            rng.random((size, NUM_MASK_DRAWS), dtype=np.float32) for rng, size in zip(draws, sizes, strict=True)
        ]
        return Batch(
            segments=segments,
            segments_per_clip=torch.tensor(sizes),
            mask_draws=torch.from_numpy(np.concatenate(mask_draws)),
            captions=captions,
            clips=torch.from_numpy(clip_numbers),
            num_samples=count_samples_by_segment(counts, sizes, self.segment_samples),
        )

    def fill_pair(self, pair: int, length: int, draws: Sequence[float], segments: NDArray[np.float32]) -> str:
        """Decode the clip of the pair with the index `pair`, which has `length` samples, into `segments` [num_segments,
        segment_samples], as many samples as fit, and return its normalised caption. `draws` are three random numbers
        from 0 to 1: of the crop, of whether the caption is replaced, and of the paraphrase that replaces it.
        """
        crop_draw, swap_draw, variant_draw = draws
        start = compute_crop_start(length, self.longest_samples, crop_draw)
        split, clip = self.splits[self.split_of_pair[pair]], int(self.clip_of_pair[pair])
        fill_segments(split, clip, start, min(length, self.longest_samples), segments)
        return normalise(self.choose_caption(pair, swap_draw, variant_draw))

    def change_pair(self, epoch: int, pair: int, samples: NDArray[np.float32], caption: str) -> tuple[str, bool]:
        """Augment a pair: change the `samples` of its clip in place, and return two values, its caption and whether
        another pair was mixed in.

        The end of a longer clip isn't mixed in. Two captions of one clip are not mixed.
        """
        rng = np.random.default_rng([self.seed, CHANGE_STREAM, epoch, pair])
        change = draw_change(rng, self.augmentation, len(self))
        is_mixed = change.is_mixed and self.find_clip(change.partner) != self.find_clip(pair)
        if is_mixed:
            length = self.get_num_samples(np.array([change.partner]))[0]
            added = np.empty((1, min(len(samples), length, self.longest_samples)), np.float32)
            partner_caption = self.fill_pair(change.partner, length, change.partner_draws, added)
            samples[: added.size] += np.float32(change.partner_gain) * added[0]
            caption = change.join(caption, partner_caption)
        if self.augmentation.filter_db:
            samples[:] = filter_samples(samples, draw_filter(rng, self.augmentation.filter_db))
        samples *= np.float32(change.gain)
        return caption, is_mixed

    @property
    def has_random_audio(self) -> bool:
        """Whether the samples of a pair differ between epochs: by augmentation, or by random crops of long clips."""
        lengths = [split.num_samples[self.clip_of_pair[self.split_of_pair == number]]
                   for number, split in enumerate(self.splits)]  # fmt: skip
        is_cropped = any((length > self.longest_samples).any() for length in lengths)
        return is_cropped or self.augmentation != NO_AUGMENTATION

    def find_clip(self, pair: int) -> tuple[int, int]:
        """Return the split and the clip of a pair, both as indices."""
        return int(self.split_of_pair[pair]), int(self.clip_of_pair[pair])

    def choose_caption(self, pair: int, swap_draw: float, variant_draw: float) -> str:
        """Return the caption of the pair with the index `pair` or, with the dataset's paraphrase probability, one of
        its paraphrases. `swap_draw` and `variant_draw`, random numbers from 0 to 1, decide whether and which.
        """
        split = int(self.split_of_pair[pair])
        caption: str = self._flat_captions[split][int(self.caption_of_pair[pair])].as_py()
        row = int(self.variants_of_pair[pair])
        if row < 0:
            return caption
        variants = self.variants[split][row].as_py()
        return choose_wording(caption, variants, self.paraphrase_probability, swap_draw, variant_draw)

    def get_num_samples(self, pairs: NDArray[np.int64]) -> list[int]:
        """Return the number of samples of each pair's clip, before cropping. `pairs` are pair indices."""
        rows = zip(self.split_of_pair[pairs].tolist(), self.clip_of_pair[pairs].tolist(), strict=True)
        return [self.splits[split].num_samples[clip].item() for split, clip in rows]

    def get_num_segments(self, pairs: NDArray[np.int64]) -> list[int]:
        """Return the number of segments of each pair's clip, after cropping. `pairs` are pair indices."""
        counts = (min(length, self.longest_samples) for length in self.get_num_samples(pairs))
        return [count_segments(count, self.segment_samples) for count in counts]
