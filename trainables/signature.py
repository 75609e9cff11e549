"""Signatures of trials: 16 hexadecimal digits computed from everything that can change a trial's result.

A signature is a function of the trial's config and of fingerprints: of the contents of the splits that the trial
reads, of their exclusions, of the paraphrases if the trial uses them, and of the weights that it starts from.
Settings with default values are not part of it, so that a setting that is added later doesn't change the signatures of
earlier trials. Paths, the numbers of ranks and loader workers, and what is logged are not part of it either.

Raise `TRAINING_VERSION` when a default changes, or when the same config trains to another result after a change of the
code. `tests/trainables/test_signature.py` contains the current defaults and some signatures.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.leakage.exclusions import compute_exclusions_fingerprint
from data.store.storage import Location
from data.store.stored_split import open_split
from trainables import encoders
from trainables.encoders import published
from trainables.trial import Teacher, Trial, iter_required_trials

TRAINING_VERSION = 4
"""Version of the training code, part of every signature. Raise it with a change that makes the same config train to
another result.
"""

PATH_SETTINGS = ("model", "revision")
"""Settings that give the location of weights; the signature contains their fingerprint instead."""


@dataclass(frozen=True)
class Fingerprints:
    """Fingerprints of the data and weights that trials read: short strings that change whenever the contents do."""

    splits: Mapping[str, str]  # contents of splits, by 'corpus/split'
    exclusions: Mapping[tuple[str, ...], str]  # by the training splits of a trial
    paraphrases: Mapping[str, str]  # by split, if its paraphrases are used
    weights: Mapping[Any, str]  # initial weights, by the encoder's Config
    teacher_files: Mapping[str, str] = dataclasses.field(default_factory=dict)  # SHA-256 of files of teachers, by path


@dataclass(frozen=True)
class Relations:
    """Signatures of the trials that a trial is related to."""

    pretraining: str | None = None  # whose best epoch it starts from
    teachers: tuple[str, ...] = ()
    average_of: tuple[str, ...] = ()  # whose weights a soup averages
    snapshot_of: str | None = None  # of which it is the model after an earlier epoch

    @property
    def required(self) -> tuple[str, ...]:
        """The trials that must finish before this one can start, each once."""
        if self.average_of:
            return self.average_of
        return tuple(dict.fromkeys([*([self.pretraining] if self.pretraining else []), *self.teachers]))


UNRELATED = Relations()
"""A trial that is related to no other."""


def read_fingerprints(trials: Iterable[Trial], store: Location, weights: Path | None = None) -> Fingerprints:
    """Return the fingerprints that the signatures of trials, and of those that they require, depend on. Each split and
    each file is read once.

    Published weights are those in the directory `weights`; without a directory, those that would be downloaded. Raises
    UserError if the store lacks a split or its paraphrases, or if weights or a teacher's file can't be found.
    """
    all_trials = list(dict.fromkeys(required for trial in trials for required in iter_required_trials(trial)))
    names = dict.fromkeys(name for trial in all_trials for name in (*trial.train, trial.validation, trial.test))
    splits = {name: open_split(store, name) for name in names}
    paraphrased = dict.fromkeys(
        name for trial in all_trials if trial.paraphrase_probability > 0 for name in trial.train
    )
    configs = dict.fromkeys(config for trial in all_trials for config in (trial.audio, trial.text))
    files = dict.fromkeys(file for trial in all_trials for teacher in trial.teachers for file in teacher.files)
    return Fingerprints(
        splits={name: split.fingerprint for name, split in splits.items()},
        exclusions={
            train: compute_exclusions_fingerprint(store, train) for train in {trial.train for trial in all_trials}
        },
        paraphrases={name: splits[name].compute_paraphrases_fingerprint() for name in paraphrased},
        weights={config: encoders.module_of_config(config).weights_fingerprint(config, weights) for config in configs},
        teacher_files={file: hash_teacher_file(file) for file in files},
    )


def sign(trial: Trial, fingerprints: Fingerprints) -> str:
    """Return the signature of a trial, 16 hexadecimal digits. `fingerprints` identify the contents of its splits and
    its published weights. The signature of a soup depends on those of its parts alone.
    """
    if trial.average_of:
        parts = find_relations(trial, fingerprints).average_of
        return hash_settings({"average_of": parts, "training_version": TRAINING_VERSION})
    settings = changed_settings(trial) | {
        "audio": describe_encoder(trial.audio, fingerprints),
        "text": describe_encoder(trial.text, fingerprints),
        "schedule": {"kind": type(trial.schedule).__name__} | changed_settings(trial.schedule),
        "pretraining": sign(trial.pretraining, fingerprints) if trial.pretraining else None,
        "fingerprints": {name: fingerprints.splits[name] for name in (*trial.train, trial.validation, trial.test)},
        "exclusions": fingerprints.exclusions[trial.train],
        "training_version": TRAINING_VERSION,
    }
    if trial.paraphrase_probability > 0:
        settings["paraphrases"] = {name: fingerprints.paraphrases[name] for name in trial.train}
    if trial.teachers:
        total = sum(teacher.weight for teacher in trial.teachers)
        settings["teachers"] = [
            {"teacher": identify_teacher(teacher, fingerprints), "share": teacher.weight / total}
            for teacher in trial.teachers
        ]
    return hash_settings(settings)


def find_relations(trial: Trial, fingerprints: Fingerprints) -> Relations:
    """Return the signatures of the trials that a trial is related to, computed with `fingerprints`."""
    if trial.average_of:
        return Relations(average_of=tuple(sorted(sign(part, fingerprints) for part in trial.average_of)))
    return Relations(
        sign(trial.pretraining, fingerprints) if trial.pretraining else None,
        tuple(sign(teacher.trial, fingerprints) for teacher in trial.teachers if teacher.trial),
        snapshot_of=sign(replace(trial, snapshot_epoch=None), fingerprints) if trial.snapshot_epoch else None,
    )


def hash_settings(settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 of settings as 16 hexadecimal digits; their order and the types of numbers don't matter."""
    normalised = json.loads(json.dumps(settings), parse_int=float)  # 30 and 30.0 have the same signature
    return hashlib.sha256(json.dumps(normalised, sort_keys=True).encode()).hexdigest()[:16]


def identify_teacher(teacher: Teacher, fingerprints: Fingerprints) -> str | list[str]:
    """Return what identifies a teacher in the signature of its student: the signature of its trial, or the fingerprints
    of its files.
    """
    if teacher.trial:
        return sign(teacher.trial, fingerprints)
    return [fingerprints.teacher_files[file] for file in teacher.files]


def hash_teacher_file(path: str) -> str:
    """Return the SHA-256 of a teacher's file of embeddings or scores. Raises UserError if it can't be read."""
    try:
        return published.hash_file(Path(path))
    except OSError as error:
        raise UserError(f"the file of a teacher, {path}, can't be read: {error.strerror}") from error


def compute_signature(trial: Trial, store: Location, weights: Path | None = None) -> str:
    """Return the signature of one trial, 16 hexadecimal digits, from the splits in `store` and the published
    checkpoints in the folder `weights`. For several trials, call `read_fingerprints` once and `sign` for each.
    """
    return sign(trial, read_fingerprints([trial], store, weights))


def describe_encoder(config: Any, fingerprints: Fingerprints) -> dict[str, Any]:
    """Return the family of the encoder with this config, and those settings that differ from their defaults, as part of
    a signature. The fingerprint of the encoder's weights replaces their location.
    """
    settings = {key: value for key, value in changed_settings(config).items() if key not in PATH_SETTINGS}
    return settings | {"family": encoders.family_name(config), "weights": fingerprints.weights[config]}


def changed_settings(config: Any) -> dict[str, Any]:
    """Return, by name, the fields of a config that differ from their defaults, and the fields without a default. Nested
    configs are returned as dicts of the same kind.
    """
    changed = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.default is dataclasses.MISSING or value != field.default:
            changed[field.name] = changed_settings(value) if dataclasses.is_dataclass(value) else value
    return changed
