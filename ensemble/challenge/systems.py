"""Systems of a submission: their members' models, and the scores that they give to the evaluation set.

Shapes: Q queries, A clips.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.errors import UserError
from data.runtime.parallel import run_on_ray, start_ray
from data.runtime.progress import ProgressLine
from data.sources.json_text import parse_json
from data.store.scratch import create_scratch_folder
from data.store.stored_split import StoredSplit, open_split
from ensemble.challenge.formats import Scores
from ensemble.pool import evaluation, score_matrices
from ensemble.pool.candidates import Candidate, align_scores
from ensemble.pool.query_bank import normalise_with, read_stored_bank
from ensemble.pool.score_matrices import ScoreMatrices
from ensemble.record import build
from ensemble.selection.costs import count_parameters
from trainables import trial as trials
from trainables.execution.resources import ResourceRequest, allocate
from trainables.records.embeddings import Embeddings, read_embeddings, write_embeddings
from trainables.records.ensemble_file import BANK_FUSIONS, Ensemble, read_ensemble
from trainables.records.ledger import Ledger
from trainables.records.run_storage import RunStorage
from trainables.retrieval import Relevance
from trainables.trial import Trial, iter_required_trials

logger = logging.getLogger("chorale.systems")

EMBEDDINGS_FOLDER = "embeddings"
"""Folder of the run storage with the members' embeddings, named SIGNATURE-FINGERPRINT of the split."""


@dataclass(frozen=True)
class SystemMember:
    """Member of a system: its trial, its weight and the number of its parameters."""

    candidate: Candidate
    weight: float
    trial: Trial
    parameters: int
    bank: Embeddings | None = None  # query bank, if the ensemble's fusion needs it


@dataclass(frozen=True)
class System:
    """Ensemble to be submitted; members of weight 0 are left out."""

    path: Path  # of its ensemble.json
    ensemble: Ensemble
    members: Sequence[SystemMember]


def read_system(path: Path, ledger: Ledger, runs: RunStorage) -> System:
    """Return the system for an ensemble.json file. Raises UserError with the reason if the ensemble cannot be
    submitted.
    """
    ensemble = read_ensemble(path)
    if ensemble.direction != "t2a":
        raise UserError(
            f"{path} was selected for --direction {ensemble.direction}: challenges are text-to-audio retrieval; select "
            "one with --direction t2a"
        )
    files = [member.name for member in ensemble.members if not member.signature]
    if files:
        raise UserError(f"{path}: member {files[0]!r} is a file of scores: it has no model to embed the evaluation set")
    candidates = build.find_member_candidates(ensemble, path, ledger, [], "validation")
    members = [
        read_member(candidate, weight, path, runs, ensemble.fusion in BANK_FUSIONS)
        for candidate, weight in zip(candidates, ensemble.weights, strict=True)
        if weight
    ]
    return System(path, ensemble, members)


def read_member(candidate: Candidate, weight: float, path: Path, runs: RunStorage, needs_bank: bool) -> SystemMember:
    """Return a candidate as a member of a system with this weight, whose model must be in the run storage, with its
    query bank if `needs_bank` is set. Raises UserError, which names the ensemble's file `path` and the member, if the
    model or the bank is missing or unreadable.
    """
    where = f"{path}: member {candidate.name!r} ({candidate.signature})"
    written = runs.read(f"models/{candidate.signature}/{trials.TRIAL_FILE}")
    if written is None:
        raise UserError(
            f"{where} has no model: {runs.locate(f'models/{candidate.signature}')} no longer exists; restore it, or "
            "give its run storage with --runs"
        )
    try:
        trial = trials.from_json(parse_json(written))
    except ValueError as error:
        raise UserError(f"{where} was trained by another version of this code: {error}") from error
    with create_scratch_folder() as scratch:
        try:
            folder = runs.fetch_model(candidate.signature, scratch / "model")
            parameters = count_parameters(folder)
        except (OSError, UserError) as error:
            raise UserError(f"{where}: its weights can't be read: {error}") from error
        try:
            bank = read_stored_bank(folder, trial.embedding_size) if needs_bank else None
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    if not parameters:
        raise UserError(
            f"{where} has no weights: {runs.locate(f'models/{candidate.signature}')} lacks {trials.MODEL_FILE}"
        )
    return SystemMember(candidate, weight, trial, int(parameters), bank)


def list_stages(trial: Trial) -> list[Trial]:
    """Return the stages of a trial, from the first pretraining to the trial itself; before them, those of its teachers.
    A model that isn't trained is no stage: those of a soup are those of its parts.
    """
    return list(dict.fromkeys(stage for stage in list(iter_required_trials(trial))[::-1] if stage.is_trained))


def require_not_trained_on(systems: Sequence[System], split: StoredSplit) -> None:
    """Raise UserError if a member of one of the systems was trained on clips of `split`, the evaluation set."""
    evaluation_splits = {split.name, str(split.clips_manifest.split_id)}
    for system in systems:
        for member in system.members:
            overlap = evaluation_splits & member.trial.training_splits
            if overlap:
                raise UserError(
                    f"{system.path}: member {member.candidate.name!r} was trained on {overlap.pop()}: "
                    "no member may have been trained on the evaluation set"
                )


def embed_member(runs: RunStorage, signature: str, store: str, split_name: str, threads: int) -> Embeddings:
    """Return the embeddings of the split `split_name` in a store by the model of the trial with this signature,
    computed with `threads` CPU threads, or on a GPU if this process has one.

    Raises UserError if the model can't be loaded.
    """
    import torch

    from trainables.records.checkpoint import load_model
    from trainables.training.embedding import embed_split, fastest_device

    torch.set_num_threads(threads)
    with create_scratch_folder() as scratch:
        folder = runs.fetch_model(signature, scratch / "model")
        network, trial = load_model(folder), trials.load_trial(folder)
        return embed_split(network.to(fastest_device()), trial, signature, open_split(store, split_name))


class EmbeddingProgress(ProgressLine):
    """Progress line that shows how many members have embedded the evaluation set."""

    def __init__(self, number: int) -> None:
        self.number, self.done = number, 0
        super().__init__(logger)

    def line(self) -> str:
        """Return the text of the line."""
        return f"embedding: {self.done} of {self.number} members"


def read_cached_embeddings(path: Path, split: StoredSplit) -> Embeddings | None:
    """Return the embeddings of a split in a cache file. Return None if there is no file, or its clips or queries aren't
    those of the split in the same order.
    """
    if not path.exists():
        return None
    embeddings = read_embeddings(path)
    is_same = (embeddings.clip_ids, embeddings.queries) == (split.clip_ids, split.queries["text"].to_pylist())
    return embeddings if is_same else None


def embed_all(systems: Sequence[System], split: StoredSplit, runs: RunStorage) -> dict[str, Embeddings]:
    """Return the embeddings of a split by each member of the systems, by signature. Those that are not in this
    machine's cache are computed on Ray and added to it.
    """
    members = {member.candidate.signature: member for system in systems for member in system.members}
    paths = {
        signature: runs.local_folder / EMBEDDINGS_FOLDER / f"{signature}-{split.fingerprint}.arrow"
        for signature in members
    }
    by_signature = {
        signature: embeddings
        for signature, path in paths.items()
        if (embeddings := read_cached_embeddings(path, split))
    }
    todo = [signature for signature in members if signature not in by_signature]
    logger.info("%d members, %d of them with cached embeddings of %s", len(members), len(by_signature), split.name)
    if not todo:
        return by_signature
    from trainables.execution.nodes import list_nodes

    start_ray()
    allocation = allocate(list_nodes(), ResourceRequest(), trials=len(todo))
    work = [(runs, signature, split.store.location, split.name, allocation.threads) for signature in todo]
    with EmbeddingProgress(len(todo)) as progress:
        for index, embeddings in run_on_ray(embed_member, work, allocation.cpus_per_worker, allocation.gpus_per_worker):
            signature = todo[index]
            require_finite(embeddings, members[signature])
            write_embeddings(paths[signature], embeddings)
            by_signature[signature] = embeddings
            progress.done += 1
            progress.log_if_due()
    return by_signature


def require_finite(embeddings: Embeddings, member: SystemMember) -> None:
    """Raise UserError, which names the member, if the embeddings that its model returned contain NaN or infinity."""
    if not (np.isfinite(embeddings.audio_AD).all() and np.isfinite(embeddings.text_QD).all()):
        raise UserError(
            f"member {member.candidate.name!r} ({embeddings.signature}) returns embeddings that aren't finite"
        )


def normalise_members(system: System, embeddings: Mapping[str, Embeddings]) -> dict[str, Embeddings]:
    """Return the embeddings of a system's members, normalised by their query banks, by signature; {} if the system's
    fusion isn't by a query bank. `embeddings` has those as the models returned them.
    """
    temperature, fusion = system.ensemble.temperature, system.ensemble.fusion
    return {
        member.candidate.signature: normalise_with(
            embeddings[member.candidate.signature], member.bank, fusion, temperature
        )
        for member in system.members
        if member.bank and temperature is not None
    }


def compute_system_scores(system: System, embeddings: Mapping[str, Embeddings], split: StoredSplit) -> Scores:
    """Return a system's scores of a split [Q, A]: its members' scores, combined by its ensemble's fusion and divided by
    the sum of the weights. `embeddings` has each member's embeddings of the split, by signature.
    """
    candidates = [member.candidate for member in system.members]
    embeddings = {**embeddings, **normalise_members(system, embeddings)}
    reference, first = embeddings[candidates[0].signature], candidates[0]
    nothing, queries = np.zeros(0, np.int64), np.arange(len(reference.queries))
    source = ScoreMatrices(
        tuple(candidate.name for candidate in candidates),
        split.name,
        split.fingerprint,
        Relevance(nothing, nothing, queries),
        len(reference.clip_ids),
        tuple(
            align_scores(embeddings[candidate.signature], reference, candidate, first)[0] for candidate in candidates
        ),
    )
    weights = [member.weight for member in system.members]
    pool = score_matrices.apply_fusion(source, system.ensemble.fusion)
    parts = [
        evaluation.fuse_block(pool, weights, start, min(start + evaluation.BLOCK_QUERIES, len(queries)))
        for start in range(0, len(queries), evaluation.BLOCK_QUERIES)
    ]
    scores_QA: Scores = np.concatenate(parts) / sum(weights)
    return scores_QA
