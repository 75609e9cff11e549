"""Groups of trials whose weights can be averaged: those of one pretraining, and the last epochs of one training."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from data.errors import UserError
from ensemble.pool.candidates import Candidate
from trainables.execution.session import RunContext
from trainables.records.ledger import Ledger
from trainables.records.run_storage import RunStorage
from trainables.signature import Fingerprints, read_fingerprints, sign
from trainables.trial import Trial, from_json

NUM_LAST_EPOCHS = 5
"""Maximum number of last epochs of a training that are averaged. Assumed: earlier ones are worse, and cost as much."""

MAX_NAMED = 3
"""Maximum number of unusable trials that an error names."""

SHARED_SETTINGS = (
    "audio", "text", "embedding_size", "train", "validation", "test", "pretraining", "longest_audio_s", "precision",
)  # fmt: skip
"""Settings in which trials of a group agree: those that a soup needs, and those that change what a model computes."""


@dataclass(frozen=True)
class SoupPart:
    """Model that a soup may contain: a trial of the pool, or a training after one of its last epochs."""

    trial: Trial
    signature: str
    candidate: Candidate | None = None  # None: an epoch that is no candidate of the pool

    @property
    def name(self) -> str:
        """Name for messages and tables."""
        return self.candidate.name if self.candidate else self.trial.name


@dataclass(frozen=True)
class SoupGroup:
    """Models of a common origin, at least two, whose weights can be averaged."""

    origin: str  # name of the pretraining, or of the training whose last epochs they are
    parts: tuple[SoupPart, ...]  # sorted by signature

    @property
    def signatures(self) -> tuple[str, ...]:
        """Signatures of the parts."""
        return tuple(part.signature for part in self.parts)


@dataclass(frozen=True)
class SoupGroups:
    """Groups of a pool, the fingerprints of what its trials read, and a sentence for each trial that is left out."""

    groups: tuple[SoupGroup, ...]
    fingerprints: Fingerprints
    notes: tuple[str, ...] = ()


def find_groups(candidates: Sequence[Candidate], ledger: Ledger, site: RunContext) -> SoupGroups:
    """Return the groups of the trials among the candidates: for each pretraining, its fine-tunings that have the same
    encoders and splits; and for each trial, its last epochs whose models are in the run storage, at most
    NUM_LAST_EPOCHS. Files of scores and soups are ignored.

    Raises UserError if the store lacks a split of the trials, or no two models have a common origin.
    """
    configs, notes = load_configs(candidates, ledger)
    try:
        fingerprints = read_fingerprints([trial for trial, _ in configs], site.store, site.weights)
    except UserError as error:
        raise UserError(
            f"--soup: what the trials were trained with can't be read: {error}; --store names their store, and "
            "--weights the folder of their published checkpoints"
        ) from error
    parts = []
    for trial, candidate in configs:
        if problem := explain_unusable(trial, candidate, fingerprints, site):
            notes.append(f"{candidate.name} ({candidate.signature}) is part of no soup: {problem}")
        else:
            parts.append(SoupPart(trial, candidate.signature, candidate))
    all_groups = [*group_by_pretraining(parts), *group_by_training(parts, fingerprints, site.runs)]
    groups = {group.signatures: group for group in reversed(all_groups)}  # of equal groups, the first is kept
    if not groups:
        reasons = "".join(f"; {note}" for note in notes[:MAX_NAMED])
        raise UserError(
            "--soup: no two trials of the pool can be averaged, which fine-tunings of one pretraining and the epochs "
            f"of one training can: leave --soup out, or select from a sweep with several fine-tunings{reasons}"
        )
    return SoupGroups(tuple(reversed(groups.values())), fingerprints, tuple(notes))


def load_configs(candidates: Sequence[Candidate], ledger: Ledger) -> tuple[list[tuple[Trial, Candidate]], list[str]]:
    """Return two values: the candidates that may be parts of soups, each with its config, and a sentence for each one
    whose config can't be read. Files of scores, soups and trials that were trained on all splits may not.
    """
    configs, notes = [], []
    for candidate in candidates:
        run = candidate.run
        if run is None or run.relations.average_of or run.is_trained_on_all_splits:
            continue
        try:
            configs.append((from_json(ledger.load_config(run)), candidate))
        except UserError as error:
            notes.append(f"{candidate.name} ({candidate.signature}) is part of no soup: {error}")
    return configs, notes


def explain_unusable(trial: Trial, candidate: Candidate, fingerprints: Fingerprints, site: RunContext) -> str:
    """Return why a trial can't be part of a soup, with the remedy; '' if it can."""
    if sign(trial, fingerprints) != candidate.signature:
        return (
            f"{site.store} or the published weights aren't those that it was trained with, or another version trained "
            "it: give its own with --store and --weights, or train it again"
        )
    if not site.runs.has_model(candidate.signature):
        return (
            f"its model isn't in {site.runs.locate(f'models/{candidate.signature}')}: restore it, or leave the trial "
            "out with --filter"
        )
    return ""


def group_by_pretraining(parts: Sequence[SoupPart]) -> Iterator[SoupGroup]:
    """Yield the groups of fine-tunings of one pretraining."""
    by_settings: dict[tuple[object, ...], list[SoupPart]] = {}
    for part in parts:
        if part.trial.pretraining:
            key = tuple(getattr(part.trial, name) for name in SHARED_SETTINGS)
            by_settings.setdefault(key, []).append(part)
    for group in by_settings.values():
        if len(group) > 1 and (pretraining := group[0].trial.pretraining):
            yield SoupGroup(pretraining.name, sort_parts(group))


def group_by_training(parts: Sequence[SoupPart], fingerprints: Fingerprints, runs: RunStorage) -> Iterator[SoupGroup]:
    """Yield, for each trial, the group of its last epochs whose models are in the run storage."""
    in_pool = {part.signature: part.candidate for part in parts}
    for part in parts:
        if part.trial.snapshot_epoch:
            continue
        epochs: list[SoupPart] = []
        for epoch in range(part.trial.epochs, 0, -1):
            model = make_epoch_part(part, epoch, fingerprints, in_pool)
            if len(epochs) < NUM_LAST_EPOCHS and runs.has_model(model.signature):
                epochs.append(model)
        if len(epochs) > 1:
            yield SoupGroup(f"epochs of {part.name}", sort_parts(epochs))


def make_epoch_part(
    part: SoupPart, epoch: int, fingerprints: Fingerprints, in_pool: Mapping[str, Candidate | None]
) -> SoupPart:
    """Return a trial after an epoch as a part: after its best epoch the trial itself, since that is its model.
    `in_pool` has the candidates by signature.
    """
    if part.candidate and epoch == part.candidate.trial_run.metrics.get("best_epoch"):
        return part
    snapshot = replace(part.trial, snapshot_epoch=epoch)
    signature = sign(snapshot, fingerprints)
    return SoupPart(snapshot, signature, in_pool.get(signature))


def sort_parts(parts: Sequence[SoupPart]) -> tuple[SoupPart, ...]:
    """Return parts sorted by signature."""
    return tuple(sorted(parts, key=lambda part: part.signature))
