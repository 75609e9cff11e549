"""Embeddings of training splits by the teachers of a student, computed once and kept in the run storage.

    teachers/SIGNATURE/SPLIT/embeddings.arrow    SPLIT: the split's fingerprint, and that of its paraphrases if used

All students of a teacher share its files. Whoever needs one first computes it under a lease, while the others wait.
"""

from __future__ import annotations

import functools
import logging
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import UserError
from data.store.stored_split import StoredSplit, open_split
from trainables.records.embeddings import Embeddings, write_embeddings
from trainables.records.lease import Lease, compute_once
from trainables.records.run_storage import RunStorage
from trainables.signature import read_fingerprints, sign
from trainables.trial import Trial

if TYPE_CHECKING:
    import torch

    from trainables.execution.session import RunContext

logger = logging.getLogger("chorale.teachers")

EMBEDDINGS_FILE = "embeddings.arrow"


@dataclass(frozen=True)
class TeacherSplit:
    """A training split that a teacher embeds for its students."""

    trial: Trial
    signature: str  # of the teacher
    split: StoredSplit
    with_paraphrases: bool  # whether the students replace captions with paraphrases, so that these are embedded, too

    @functools.cached_property
    def contents(self) -> str:
        """Fingerprints of what is embedded."""
        paraphrases = f"-{self.split.compute_paraphrases_fingerprint()}" if self.with_paraphrases else ""
        return f"{self.split.fingerprint}{paraphrases}"

    @property
    def folder(self) -> str:
        """Name of the folder of the embeddings in the run storage."""
        return f"teachers/{self.signature}/{self.contents}"


def fetch_teachers(trial: Trial, site: RunContext, device: torch.device, scratch: Path) -> tuple[tuple[Path, ...], ...]:
    """Return, for each teacher of a trial, the local file with its embeddings or scores of each training split. What
    the run storage lacks is computed on `device`; from an object store it is copied into `scratch`.

    Raises UserError if the model of a teacher is missing.
    """
    if not trial.teachers:
        return ()
    fingerprints = read_fingerprints([trial], site.store, site.weights)
    splits = [open_split(site.store, name) for name in trial.train]
    return tuple(
        tuple(
            store_embeddings(
                TeacherSplit(teacher.trial, sign(teacher.trial, fingerprints), split, trial.paraphrase_probability > 0),
                site.runs,
                device,
                scratch / f"teacher-{number}-{index}",
            )
            for index, split in enumerate(splits)
        )
        if teacher.trial
        else tuple(map(Path, teacher.files))
        for number, teacher in enumerate(trial.teachers)
    )


def store_embeddings(work: TeacherSplit, runs: RunStorage, device: torch.device, scratch: Path) -> Path:
    """Return the local file with a teacher's embeddings of a training split. If the run storage doesn't have it, it is
    computed on `device` or, if another process computes it, waited for. `scratch` is a folder for files from an object
    store, which need not exist.
    """

    def compute(_: Lease) -> None:
        embeddings = embed_training_split(work, runs, device, scratch / "model")
        runs.write_folder(work.folder, functools.partial(write_file, embeddings))

    compute_once(
        runs,
        f"{work.signature}-{work.contents}",
        is_done=lambda: bool(runs.list_names(work.folder)),
        compute=compute,
        description=f"{work.split.name}, embedded by {work.trial.name},",
        command=uuid.uuid4().hex,  # a process of the same command doesn't take the lease over
    )
    return runs.fetch(work.folder, scratch / "embeddings") / EMBEDDINGS_FILE


def write_file(embeddings: Embeddings, folder: Path) -> None:
    """Write embeddings into a folder of the run storage."""
    write_embeddings(folder / EMBEDDINGS_FILE, embeddings)


def embed_training_split(work: TeacherSplit, runs: RunStorage, device: torch.device, scratch: Path) -> Embeddings:
    """Return a teacher's embeddings of the clips and the texts of a training split, computed on `device` in evaluation
    mode. A model in an object store is copied into `scratch`. Raises UserError if the teacher has no model.
    """
    from trainables.records.checkpoint import load_model
    from trainables.training.distillation import list_texts
    from trainables.training.embedding import embed_split

    if not runs.has_model(work.signature):
        raise UserError(
            f"the model of the teacher {work.trial.name} ({work.signature}) isn't in {runs}: train it first"
        )
    model = load_model(runs.fetch_model(work.signature, scratch), work.trial).to(device)
    logger.info("%s (%s) embeds %s for its students", work.trial.name, work.signature, work.split.name)
    texts = list_texts(work.split, work.with_paraphrases)
    return embed_split(model, work.trial, work.signature, work.split, texts)
