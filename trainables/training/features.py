"""Features: outputs of frozen encoders, before the projection, computed once and kept in the run storage.

    features/KEY/features.safetensors    a vector per segment of a split's clips, or per text of a split

All trials with the same frozen encoder share its features, which are mapped into memory. KEY is a hash of all that they
depend on. Whoever needs them first computes them under a lease, while the others wait. Features replace training pairs
if nothing random is in front of the encoder: no mixtures of clips and, for clips, no gains and no random crops.

Shapes: B pairs, S segments, W an encoder's width.
"""

import functools
import hashlib
import itertools
import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.captions import normalise
from data.loading.batch import Batch
from data.loading.clips import load_clips
from data.loading.pairs import ClipCaptionDataset
from data.store.scratch import create_scratch_folder
from data.store.stored_split import StoredSplit
from trainables import encoders
from trainables.networks.dual_encoder import DualEncoder
from trainables.records.checkpoint import Weights, refuse_damage
from trainables.records.lease import Lease, compute_once
from trainables.records.run_storage import RunStorage
from trainables.signature import PATH_SETTINGS, TRAINING_VERSION, changed_settings, hash_settings
from trainables.training.embedding import CLIPS_PER_BATCH, QUERIES_PER_BATCH
from trainables.trial import Trial

logger = logging.getLogger("chorale.features")

FEATURES_FILE = "features.safetensors"
VECTORS, SIZES = "vectors", "sizes"
"""Tensors of a file: the features, and of clips their numbers of segments."""


@dataclass(frozen=True)
class FeatureStorage:
    """Run storage of features, and a folder for files that are copied from an object store."""

    runs: RunStorage
    scratch: Path
    fetched: dict[str, Weights] = field(default_factory=dict)  # by key

    def fetch(self, key: str, description: str, compute: Callable[[], Weights]) -> Weights:
        """Return the tensors that are stored under a key, mapped into memory. If they are missing, `compute` returns
        them, and they are stored; messages call them `description`.
        """
        if key in self.fetched:
            return self.fetched[key]
        folder = f"features/{key}"

        def store(_: Lease) -> None:
            logger.info("%s are computed", description)
            self.runs.write_folder(folder, functools.partial(write_file, compute()))

        compute_once(
            self.runs,
            f"features-{key}",
            is_done=lambda: bool(self.runs.list_names(folder)),
            compute=store,
            description=description,
            command=uuid.uuid4().hex,  # a process of the same command doesn't take the lease over
        )
        path = self.runs.fetch(folder, self.scratch / folder) / FEATURES_FILE
        with refuse_damage(str(path), f"remove {self.runs.locate(folder)}, which is then computed again"):
            self.fetched[key] = load_file(path)
        return self.fetched[key]


def write_file(tensors: Weights, folder: Path) -> None:
    """Write tensors into a folder of the run storage."""
    save_file(tensors, folder / FEATURES_FILE)


class StackedRows:
    """Rows of several tensors, numbered as if they were one. Only the rows that are taken are read from memory maps."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []
        self.first = np.zeros(1, np.int64)

    def append(self, part: Tensor) -> int:
        """Add the rows of a tensor, and return the number of its first row."""
        self.parts.append(part)
        self.first = np.append(self.first, self.first[-1] + len(part))
        return int(self.first[-2])

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the rows with these numbers."""
        taken = torch.empty(len(rows), self.parts[0].shape[1], dtype=self.parts[0].dtype)
        part_of_row = np.searchsorted(self.first, rows, side="right") - 1
        for number in np.unique(part_of_row):
            chosen = np.flatnonzero(part_of_row == number)
            taken[chosen] = self.parts[number][rows[chosen] - self.first[number]]
        return taken


class FrozenFeatures:
    """Features of the frozen encoders of a trial's model; a `FeatureSource`. What the storage lacks is computed when it
    is needed, on the model's device.

    Args:
        network: The model, whose frozen encoders have their final weights.
        trial: The trial.
        storage: The storage of features.
        pairs: The training pairs. If the features of clips replace them, their audio is no longer read.
    """

    def __init__(self, network: DualEncoder, trial: Trial, storage: FeatureStorage, pairs: ClipCaptionDataset) -> None:
        self.network, self.trial, self.storage = network, trial, storage
        self.encoders = {kind: hash_encoder(network, kind) for kind, is_frozen in (
            ("audio", network.frozen_audio), ("text", network.frozen_text)) if is_frozen}  # fmt: skip
        self.text_vectors, self.row_of_text = StackedRows(), dict[str, int]()
        self.splits_of_texts: set[str] = set()  # fingerprints
        self.segment_vectors, self.sizes_of_clips = StackedRows(), np.zeros(0, np.int64)
        self.replaces_audio = network.frozen_audio and not pairs.has_random_audio
        self.replaces_text = network.frozen_text and not trial.mix_probability
        for split in pairs.splits if self.replaces_audio else ():
            tensors = self.fetch_clips(split)
            self.segment_vectors.append(tensors[VECTORS])
            self.sizes_of_clips = np.append(self.sizes_of_clips, tensors[SIZES].numpy())
        self.first_segments = np.cumsum([0, *self.sizes_of_clips])
        for split in pairs.splits if network.frozen_text else ():
            self.load_queries(split)
            if trial.paraphrase_probability:
                contents = f"paraphrases {split.compute_paraphrases_fingerprint()}"
                self.add_texts(split, contents, itertools.chain.from_iterable(split.read_paraphrases().values()))
        pairs.reads_audio = not self.replaces_audio

    def attach(self, batch: Batch) -> Batch:
        """Return a batch of training pairs with the features of its clips and its captions, as far as these replace
        audio and captions.
        """
        audio = text = None
        if self.replaces_audio:
            clips = batch.clips.numpy()
            counts = self.sizes_of_clips[clips]
            starts = np.repeat(self.first_segments[clips] - np.cumsum(counts) + counts, counts)
            audio = self.segment_vectors.take(starts + np.arange(len(starts)))
        if self.replaces_text:
            text = self.find_texts(batch.captions)
            assert text is not None
        return replace(batch, audio_features=audio, text_features=text)

    def load_clips(self, split: StoredSplit, batch_size: int) -> Iterator[Batch] | None:
        """Return batches of up to `batch_size` clips of a split in order, with features in place of samples; None if
        the audio encoder isn't frozen.
        """
        if not self.network.frozen_audio:
            return None
        tensors = self.fetch_clips(split)
        sizes = tensors[SIZES].split(batch_size)
        vectors = tensors[VECTORS].split([int(part.sum()) for part in sizes])
        clips = torch.arange(len(tensors[SIZES])).split(batch_size)
        return (
            replace(Batch.without_captions(torch.empty(len(part_SW), 0), part_sizes.tolist(), numbers.tolist()),
                    audio_features=part_SW)
            for part_SW, part_sizes, numbers in zip(vectors, sizes, clips, strict=True)
        )  # fmt: skip

    def load_queries(self, split: StoredSplit) -> None:
        """Make the features of a split's captions and queries available, if the text encoder is frozen."""
        if self.network.frozen_text and split.fingerprint not in self.splits_of_texts:
            self.splits_of_texts.add(split.fingerprint)
            captions = itertools.chain.from_iterable(split.captions)
            self.add_texts(split, "captions", itertools.chain(captions, split.queries["text"].to_pylist()))

    def find_texts(self, captions: Sequence[str]) -> Tensor | None:
        """Return the features [B, W] of normalised captions; None if one of them isn't available."""
        rows = [self.row_of_text.get(caption, -1) for caption in captions]
        return self.text_vectors.take(np.array(rows)) if rows and min(rows) >= 0 else None

    def add_texts(self, split: StoredSplit, contents: str, texts: Iterable[str]) -> None:
        """Make the features of texts of a split available; `contents` says which texts of the split they are."""
        normalised = list(dict.fromkeys(map(normalise, texts)))
        if not normalised:
            return
        key = self.make_key("text", split, contents)
        description = f"the features of {split.name} by {encoders.format_label(self.trial.text)}"
        vectors = self.storage.fetch(key, description, lambda: {VECTORS: self.encode_texts(normalised)})[VECTORS]
        first = self.text_vectors.append(vectors)
        for row, text in enumerate(normalised, start=first):
            self.row_of_text.setdefault(text, row)

    def fetch_clips(self, split: StoredSplit) -> Weights:
        """Return the features of a split's clips, of the first `longest_audio_s` seconds of each: a vector per segment,
        and the numbers of segments.
        """
        key = self.make_key("audio", split, f"{float(self.trial.longest_audio_s)} s")
        description = f"the features of {split.name} by {encoders.format_label(self.trial.audio)}"
        return self.storage.fetch(key, description, lambda: self.encode_clips(split))

    def make_key(self, kind: str, split: StoredSplit, contents: str) -> str:
        """Return the key of features of a split by an encoder, of the `kind` 'audio' or 'text': a hash of all that they
        depend on. `contents` says what of the split is encoded.
        """
        config = getattr(self.trial, kind)
        settings = {name: value for name, value in changed_settings(config).items() if name not in PATH_SETTINGS}
        return hash_settings({
            "encoder": settings | {"family": encoders.family_name(config)}, "weights": self.encoders[kind],
            "precision": self.trial.precision, "device": self.device.type, "split": split.fingerprint,
            "contents": contents, "training_version": TRAINING_VERSION,
        })  # fmt: skip

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.network.temperature_parameter.device

    @torch.no_grad()
    def encode_clips(self, split: StoredSplit) -> Weights:
        """Compute the features of a split's clips."""
        trial, unused = self.trial, torch.Generator()
        vectors, sizes = [], []
        with torch.autocast(self.device.type, torch.bfloat16, enabled=trial.precision == "bfloat16"):
            for batch in load_clips(split, trial.audio.segment_s, trial.longest_audio_s, CLIPS_PER_BATCH):
                vectors.append(self.network.encode_audio(batch.to(self.device), unused).cpu())
                sizes.append(batch.segments_per_clip)
        return {VECTORS: torch.cat(vectors), SIZES: torch.cat(sizes)}

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Compute the features of normalised texts."""
        vectors = []
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.trial.precision == "bfloat16"):
            for start in range(0, len(texts), QUERIES_PER_BATCH):
                tokens = self.network.text.tokenize(texts[start : start + QUERIES_PER_BATCH])
                vectors.append(self.network.encode_text(tokens.to(self.device)).cpu())
        return torch.cat(vectors)


def hash_encoder(network: DualEncoder, kind: str) -> str:
    """Return the SHA-256 of a model's encoder, of the `kind` 'audio' or 'text': its layers, its weights and constants,
    and the files of its tokenizer or its feature extractor.
    """
    encoder: nn.Module = network.get_submodule(kind)
    digest = hashlib.sha256(str(encoder).encode())
    for name, tensor in itertools.chain(encoder.named_parameters(), encoder.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().data)
    save_input = getattr(encoder, {"text": "save_tokenizer", "audio": "save_extractor"}[kind], None)
    if save_input:
        with create_scratch_folder() as folder:
            save_input(folder)
            for path in sorted(folder.rglob("*")):
                digest.update(path.name.encode() + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()


def use_features(
    network: DualEncoder, trial: Trial, storage: FeatureStorage | None, pairs: ClipCaptionDataset
) -> FrozenFeatures | None:
    """Let a trial's model use the features of its frozen encoders from the storage, in training on `pairs` and when it
    embeds a split. Return them; None without a storage, or if no encoder is frozen.
    """
    if storage is None or not network.frozen:
        return None
    network.features = features = FrozenFeatures(network, trial, storage, pairs)
    return features
