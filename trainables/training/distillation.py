"""Distillation: what teachers have computed for the training splits, as the targets of a student's batches.

Shapes: B pairs of all ranks together, L pairs of one rank, A clips and T texts of a split, D dimensions.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.captions import normalise
from data.errors import UserError
from data.loading.pairs import ClipCaptionDataset
from data.sources.numpy_files import read_array
from data.store.stored_split import StoredSplit
from trainables.records.embeddings import read_embeddings
from trainables.trial import Trial

SCORES_SUFFIX = ".npy"
"""Suffix of files of scores; other files of teachers are embeddings."""


@dataclass(frozen=True)
class Locations:
    """Places of the clips or of the texts of a batch: the index of the training split, and the row in it."""

    splits: NDArray[np.int64]
    rows: NDArray[np.int64]


def list_texts(split: StoredSplit, with_paraphrases: bool) -> list[str]:
    """Return the normalised captions of a split, each text once in the order of the clips, and after them those of its
    paraphrases if the student uses them.
    """
    captions = itertools.chain.from_iterable(split.captions)
    paraphrases = itertools.chain.from_iterable(split.read_paraphrases().values()) if with_paraphrases else ()
    return list(dict.fromkeys(map(normalise, itertools.chain(captions, paraphrases))))


class EmbeddingsTeacher:
    """Teacher given by files of embeddings, one for each training split. Raises UserError if a file lacks a clip or a
    text of its split.
    """

    def __init__(self, paths: Sequence[Path], splits: Sequence[StoredSplit], texts: Sequence[Sequence[str]]) -> None:
        files = [read_embeddings(path) for path in paths]
        self.clip_vectors = [file.audio_AD for file in files]
        self.text_vectors = [file.text_QD for file in files]
        self.clip_rows, self.text_rows = [], []
        for path, file, split, split_texts in zip(paths, files, splits, texts, strict=True):
            self.clip_rows.append(find_rows(file.clip_ids, split.clip_ids, f"{path}: the clip"))
            self.text_rows.append(find_rows(file.queries, split_texts, f"{path}: the normalised caption"))

    def compute_cosines(self, clips_B: Locations, texts_B: Locations) -> NDArray[np.float32]:
        """Return the teacher's cosines [B, B] for the clips and the texts at these locations, a row for each clip."""
        clips_BD = gather_vectors(self.clip_vectors, self.clip_rows, clips_B)
        return clips_BD @ gather_vectors(self.text_vectors, self.text_rows, texts_B).T


class ScoresTeacher:
    """Teacher given by the file of a score matrix of the only training split, with a row for each caption, clip by
    clip, and a column for each clip. Raises UserError if the file has another shape or a score isn't finite.
    """

    def __init__(self, path: Path, split: StoredSplit, texts: Sequence[str]) -> None:
        self.scores_CA = read_array(path)
        captions = [normalise(caption) for captions in split.captions for caption in captions]
        shape = len(captions), len(split.clip_ids)
        if self.scores_CA.shape != shape or self.scores_CA.dtype.kind != "f":
            raise UserError(
                f"{path} is {self.scores_CA.dtype} {self.scores_CA.shape}: the scores of a teacher on {split.name} "
                f"must be floats {shape}, a row for each caption and a column for each clip"
            )
        if not np.isfinite(self.scores_CA).all():
            raise UserError(f"{path} has scores that aren't finite: write it again without them")
        self.text_rows = find_rows(captions, texts, f"{path} has no scores of paraphrases: the text")

    def compute_cosines(self, clips_B: Locations, texts_B: Locations) -> NDArray[np.float32]:
        """Return the teacher's scores [B, B] for the clips and the texts at these locations, a row for each clip."""
        return self.scores_CA[self.text_rows[texts_B.rows], clips_B.rows[:, None]].astype(np.float32)


def open_teacher(
    paths: Sequence[Path], splits: Sequence[StoredSplit], texts: Sequence[Sequence[str]]
) -> EmbeddingsTeacher | ScoresTeacher:
    """Return the teacher whose embeddings or scores of the training splits are in these files. `texts` has the
    normalised captions of each split, and its paraphrases if the student uses them.
    """
    if not any(path.suffix == SCORES_SUFFIX for path in paths):
        return EmbeddingsTeacher(paths, splits, texts)
    if len(paths) > 1:
        raise UserError(
            f"{', '.join(map(str, paths))}: scores are of one split, but the student is trained on {len(splits)}: give "
            "files of embeddings"
        )
    return ScoresTeacher(paths[0], splits[0], texts[0])


def find_rows(keys: Sequence[str], requested: Sequence[str], what: str) -> NDArray[np.int64]:
    """Return the index of each of the keys `requested` in `keys`, the first one if it occurs several times. Raises
    UserError, whose message begins with `what`, if one is missing.
    """
    index_of = dict(zip(reversed(keys), range(len(keys) - 1, -1, -1), strict=True))
    if missing := next((key for key in requested if key not in index_of), None):
        raise UserError(f"{what} {missing!r} is missing: write the file again for this store")
    return np.array([index_of[key] for key in requested], np.int64)


def gather_vectors(
    vectors: Sequence[NDArray[np.float32]], rows: Sequence[NDArray[np.int64]], locations: Locations
) -> NDArray[np.float32]:
    """Return the vectors [B, D] at the locations. `vectors` has those of each split, and `rows` the row of each clip or
    text of each split.
    """
    gathered = np.empty((len(locations.rows), vectors[0].shape[1]), np.float32)
    for split in np.unique(locations.splits):
        chosen = locations.splits == split
        gathered[chosen] = vectors[split][rows[split][locations.rows[chosen]]]
    return gathered


class TeacherTargets:
    """Targets of a student's batches: the weighted mean of its teachers' cosines, divided by the teachers' temperature.

    Args:
        trial: The student.
        pairs: Its training pairs.
        files: Of each teacher, the file of embeddings or scores of each training split.

    Raises:
        UserError: If a file is damaged, or lacks a clip or a text.
    """

    def __init__(self, trial: Trial, pairs: ClipCaptionDataset, files: Sequence[Sequence[Path]]) -> None:
        if len(files) != len(trial.teachers):
            raise ValueError("a student needs the files of each of its teachers")
        self.temperature = trial.teacher_temperature
        texts = [list_texts(split, trial.paraphrase_probability > 0) for split in pairs.splits]
        self.number_of_text: dict[str, int] = {}
        for number, text in enumerate(itertools.chain.from_iterable(texts)):
            self.number_of_text.setdefault(text, number)
        self.first_clips, self.first_texts = pairs.first_clip, np.cumsum([0, *map(len, texts)])
        self.teachers = [open_teacher(paths, pairs.splits, texts) for paths in files]
        self.weights = [teacher.weight for teacher in trial.teachers]

    def find_texts(self, captions: Sequence[str]) -> Tensor:
        """Return the number of each normalised caption of a batch, int64 [L]."""
        return torch.tensor([self.number_of_text[caption] for caption in captions])

    def compute_logits(self, clips_B: Tensor, texts_B: Tensor) -> Tensor:
        """Return the teachers' logits for the pairs of a batch [B, B], float32 on the device of `clips_B`: a row for
        each clip, given by its number in the training pairs, and a column for each text, given by its number.
        """
        clips, texts = locate(clips_B, self.first_clips), locate(texts_B, self.first_texts)
        cosines = [teacher.compute_cosines(clips, texts) for teacher in self.teachers]
        mean_BB = np.average(cosines, axis=0, weights=self.weights).astype(np.float32)
        return torch.from_numpy(mean_BB / np.float32(self.temperature)).to(clips_B.device)


def locate(numbers_B: Tensor, first: NDArray[np.int64]) -> Locations:
    """Return the split of each clip or text, and its row there, given its number over all splits. `first` has the
    number of the first one of each split.
    """
    numbers = numbers_B.cpu().numpy()
    splits = np.searchsorted(first, numbers, side="right") - 1
    return Locations(splits, numbers - first[splits])
