"""Models of an ensemble, which embed recordings and sentences without Ray, MLflow or a store.

    DIR/ensemble.json          members with their weights, and the folders of their models
    DIR/members/SIGNATURE/     config, weights (safetensors) and tokenizer of a member, and its query bank if used
    DIR/README.md              description and licence

The vector of an ensemble is the concatenation of its members' vectors, each multiplied by the square root of the
member's share. It has length 1, and dot products are the weighted means of the members' cosines. If scores are
normalised by query banks, the vector of each member has one more dimension: minus the clip's offset, and 1 for a
sentence.

Shapes: A clips, Q sentences, D the size of all members' embeddings together.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data.errors import UserError
from data.sources.audio_files import FileProblems
from data.store.scratch import create_scratch_folder
from ensemble.pool.query_bank import append_column, compute_offsets, read_stored_bank
from trainables import trial as trials
from trainables.records import ensemble_file
from trainables.records.embeddings import Embeddings
from trainables.records.ensemble_file import Ensemble, read_ensemble, require_indexable
from trainables.records.run_storage import RunStorage
from trainables.trial import Trial

if TYPE_CHECKING:
    from trainables.networks.dual_encoder import DualEncoder

ClipVectors = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Vectors of some clips [A, D], and the indices of the clips [A]."""

ENSEMBLE_FILE = "ensemble.json"
MEMBERS = "members"


@dataclass(frozen=True)
class LoadedMember:
    """Member of an ensemble, loaded: its model, its trial, and its share of the weights."""

    model: DualEncoder
    trial: Trial
    weight: float
    bank: Embeddings | None = None  # query bank by which its scores are normalised

    @property
    def vector_size(self) -> int:
        """Number of dimensions of its vectors."""
        return self.trial.embedding_size + (self.bank is not None)

    def extend_audio(self, audio_AD: NDArray[np.float32], temperature: float | None) -> NDArray[np.float32]:
        """Return the embeddings of clips with minus their offsets appended, for this temperature of the normalisation;
        unchanged if the scores aren't normalised.
        """
        if self.bank is None or temperature is None:
            return audio_AD
        return append_column(audio_AD, -compute_offsets(audio_AD, self.bank.text_QD, [temperature])[0])

    def extend_text(self, text_QD: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the embeddings of sentences with 1 appended; unchanged if the scores aren't normalised."""
        return text_QD if self.bank is None else append_column(text_QD, np.ones(len(text_QD)))


@dataclass(frozen=True)
class EnsembleModels:
    """Models of an ensemble, with weights that sum to one."""

    signature: str  # hash of the members' signatures and shares, and of the normalisation
    ensemble: Ensemble
    members: Sequence[LoadedMember]

    @property
    def embedding_size(self) -> int:
        """Number of dimensions of the concatenated embeddings, D."""
        return sum(member.vector_size for member in self.members)

    def compute_query_scale(self) -> NDArray[np.float32]:
        """Return the typical size of each entry of a sentence's vector [D]. Embeddings have length 1, so their entries
        have the root mean square of one over the root of their number; an entry for offsets is 1.
        """
        scales = [
            np.sqrt(member.weight) * np.append(
                np.full(member.trial.embedding_size, member.trial.embedding_size**-0.5),
                np.ones(int(member.bank is not None)),
            )
            for member in self.members
        ]  # fmt: skip
        return np.concatenate(scales).astype(np.float32)

    def convert_to_queries(self, audio_AD: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the vectors with which to search for recordings like some clips: their embeddings, with the entries
        for offsets of sentences.
        """
        queries_AD, first = audio_AD.copy(), 0
        for member in self.members:
            first += member.vector_size
            if member.bank is not None:
                queries_AD[:, first - 1] = np.sqrt(member.weight)
        return queries_AD

    def embed_text(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        """Return the ensemble's vectors of sentences [Q, D]."""
        from trainables.training.embedding import embed_text

        return concatenate_weighted(
            [member.extend_text(embed_text(member.model, member.trial, sentences)) for member in self.members],
            self.members,
        )

    def embed_files(self, paths: Sequence[Path]) -> tuple[NDArray[np.float32], list[Path], FileProblems]:
        """Return three values: the vectors of audio files [A, D]; the paths of the files that could be embedded; and
        the files that were skipped, or whose audio was changed when it was decoded, with the reasons.

        Members with the same segment length and maximum length share the decoded audio. A file is skipped if it can't
        be decoded for one of the members.
        """
        from data.loading.clips import load_files
        from trainables.training.embedding import CLIPS_PER_BATCH, embed_audio

        problems = FileProblems()
        batches_of_members: list[list[ClipVectors]] = [[] for _ in self.members]
        for (segment_s, longest_s), indices in self.group_by_segmentation().items():
            for batch in load_files(paths, segment_s, longest_s, CLIPS_PER_BATCH, problems):
                for index in indices:
                    batches_of_members[index].append(
                        embed_audio(self.members[index].model, self.members[index].trial, [batch])
                    )
        embedded = [clip for clip, path in enumerate(paths) if path not in problems.skipped]
        complete = []
        for batches, member in zip(batches_of_members, self.members, strict=True):
            nothing = np.zeros((0, member.trial.embedding_size), np.float32)
            audio_AD = np.concatenate([nothing, *(vectors[np.isin(clips, embedded)] for vectors, clips in batches)])
            complete.append(member.extend_audio(audio_AD, self.ensemble.temperature))
        return concatenate_weighted(complete, self.members), [paths[clip] for clip in embedded], problems

    def group_by_segmentation(self) -> dict[tuple[float, float], list[int]]:
        """Return the indices of the members by segment length and maximum length of a clip, both in seconds."""
        groups: dict[tuple[float, float], list[int]] = {}
        for index, member in enumerate(self.members):
            groups.setdefault((member.trial.audio.segment_s, member.trial.longest_audio_s), []).append(index)
        return groups


def concatenate_weighted(
    vectors: Sequence[NDArray[np.float32]], members: Sequence[LoadedMember]
) -> NDArray[np.float32]:
    """Return the concatenation of the members' vectors, each multiplied by the square root of the member's share."""
    weighted = [
        np.float32(np.sqrt(member.weight)) * member_vectors
        for member_vectors, member in zip(vectors, members, strict=True)
    ]
    return np.concatenate(weighted, axis=1)


def load_models(path: Path, runs: RunStorage | None = None) -> EnsembleModels:
    """Return an ensemble with its models loaded, on this process' GPU if it has one.

    Args:
        path: the folder of an exported ensemble, or an ensemble.json.
        runs: the run storage with the members' models; not needed for an exported ensemble.

    Raises:
        UserError: if a model or a query bank is missing, or the ensemble's scores are no dot products.
    """
    from trainables.records.checkpoint import load_model
    from trainables.training.embedding import fastest_device

    path = path / ENSEMBLE_FILE if path.is_dir() else path
    ensemble = read_indexable_ensemble(path)
    entries = [entry for entry in ensemble.members if entry.weight]
    total_weight = sum(entry.weight for entry in entries)
    members = []
    with create_scratch_folder() as scratch:
        for entry in entries:
            folder = locate_member(entry, path, runs, scratch)
            try:
                model, trial = load_model(folder), trials.load_trial(folder)
                bank = None if ensemble.temperature is None else read_stored_bank(folder, trial.embedding_size)
            except UserError as error:
                raise UserError(f"{path}: member {entry.name!r}: {error}") from error
            members.append(LoadedMember(model.to(fastest_device()), trial, entry.weight / total_weight, bank))
    described: list[Any] = [[entry.signature, entry.weight / total_weight] for entry in entries]
    if ensemble.temperature is not None:
        described += [ensemble.temperature, [member.bank.fingerprint for member in members if member.bank]]
    return EnsembleModels(hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16], ensemble, members)


def read_indexable_ensemble(path: Path) -> Ensemble:
    """Return the ensemble in an ensemble.json file whose members can embed recordings and whose scores are dot
    products.

    Raises UserError if its scores are no dot products, or a member is a file of scores.
    """
    ensemble = read_ensemble(path)
    require_indexable(ensemble, path)
    for member in ensemble.members:
        if not member.signature:
            raise UserError(f"{path}: member {member.name!r} is a file of scores: it has no model")
    return ensemble


def locate_member(entry: ensemble_file.Member, path: Path, runs: RunStorage | None, scratch: Path) -> Path:
    """Return the local folder of the model of the member `entry`: beside the exported ensemble.json at `path`, or
    fetched from the run storage into `scratch`. Raises UserError if it is in neither.
    """
    signature = entry.signature
    exported = path.parent / MEMBERS / signature
    if exported.is_dir():
        return exported
    if runs is None or not runs.has_model(signature):
        other_location = "" if runs is None else f" or {runs.locate(f'models/{signature}')}"
        raise UserError(f"{path}: the model of member {entry.name!r} no longer exists in {exported}{other_location}")
    return runs.fetch_model(signature, scratch / signature)


def list_regular_files(folder: Path) -> list[Path]:
    """Return the paths of all files in a folder and its subfolders, sorted.

    Raises UserError for a link, a pipe or a device, the folder itself included: the folder may be a stranger's, and a
    link could bring any file of this machine into a copy of the folder.
    """
    files = []
    for path in [folder, *sorted(folder.rglob("*"))]:
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            files.append(path)
        elif not stat.S_ISDIR(mode):
            kind = "a link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
            raise UserError(f"{path} is {kind}, and only regular files are copied: remove it, or replace it by a file")
    return files
