"""Metadata of a submitted system in the challenge's form, from its members' configs, the ledger and ensemble.json.

In the form, the parts on the submission, its authors and the complexity are cited from DCASE's example packages. Other
names of fields are assumed (ASSUMED_FIELDS), since the form of the task itself was not available; each file says so at
its beginning. Information that only the authors have is never invented: until it is given, it is a placeholder or left
out.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.schema import SAMPLE_RATE_HZ, SplitId
from ensemble.challenge.systems import System, SystemMember, list_stages
from ensemble.challenge.yaml_text import MAX_BYTES, parse_yaml
from trainables import encoders
from trainables.records.ensemble_file import FUSION_LABELS, Ensemble
from trainables.trial import Trial, describe_rate_settings

LABEL_PLACEHOLDER = "LASTNAME_INSTITUTE"
"""Beginning of the labels if the authors are unknown."""

CHALLENGE_CORPUS = "clotho"
"""Corpus of the challenge; all others count as external data."""

RESULT_METRICS = {"map10": "mAP10", "r1": "R1", "r5": "R5", "r10": "R10"}
"""Names of the metrics on the development set's test split in the form, by their names in ensemble.json."""

OPTIONAL_RESULT_METRICS = {"map16": "mAP16"}
"""The same for metrics that are left out if ensemble.json doesn't have them."""

ASSUMED_FIELDS = (
    "system.description.audio_modelling", "system.description.word_embeddings", "system.description.training_data",
    "system.description.loss_function", "system.description.optimizer", "system.description.learning_rate",
    "system.description.batch_size", "system.description.gradient_clipping", "system.description.metric_monitored",
    "system.description.ensemble_members", "system.external_datasets.purpose", "system.external_datasets.splits",
    "results.development_testing",
)  # fmt: skip
"""Fields whose names are assumed, since the form of the task was not available."""

COMMENT = "The names of these fields are assumed; compare them with the form of the year's task:\n" + "\n".join(
    f"  {name}" for name in ASSUMED_FIELDS
)
"""Comment at the beginning of the metadata."""

MAX_ABBREVIATION_LENGTH = 10
"""Maximum number of characters of an abbreviation (cited: the comments of the form)."""


@dataclass(frozen=True)
class SubmissionInfo:
    """Information about a system that only its authors have."""

    label: str
    name: str | None
    abbreviation: str | None
    authors: Sequence[Mapping[str, Any]]
    source_code: str | None


def read_authors(path: Path) -> list[dict[str, Any]]:
    """Return the authors in a YAML file: a list as in the challenge's form, or that list under `authors`.

    Raises UserError if the file can't be read or contains no such list.
    """
    try:
        with path.open("rb") as file:
            content = parse_yaml(file.read(MAX_BYTES + 1))
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} isn't YAML in UTF-8: {error}") from error
    authors = content.get("authors") if isinstance(content, dict) else content
    if not isinstance(authors, list) or not authors or not all(isinstance(author, dict) for author in authors):
        raise UserError(
            f"{path} must contain a list of authors with lastname, firstname, email, corresponding (true for one) "
            "and affiliation (abbreviation, institute, department, location)"
        )
    return authors


def choose_label(label: str | None, authors: Iterable[Mapping[str, Any]]) -> str:
    """Return the beginning of the systems' labels, LASTNAME_INSTITUTE: `label` if it is given, otherwise one made from
    the corresponding author, otherwise LABEL_PLACEHOLDER.

    Raises UserError if `label` is given but isn't of the form LASTNAME_INSTITUTE.
    """
    if label:
        if not re.fullmatch(r"[^\W_]+(-[^\W_]+)*_[^\W_]+(-[^\W_]+)*", label):
            raise UserError(f"--label {label!r}: give LASTNAME_INSTITUTE, one word each; task and number are appended")
        return label
    for author in authors:
        affiliation = author.get("affiliation")
        institute = affiliation.get("abbreviation") if isinstance(affiliation, dict) else None
        words = [re.sub(r"[\W_]+", "", str(word or "")) for word in (author.get("lastname"), institute)]
        if author.get("corresponding") is True and all(words):
            return "_".join(words)
    return LABEL_PLACEHOLDER


def build_metadata(system: System, info: SubmissionInfo) -> dict[str, Any]:
    """Return a system's metadata as a nested dict with the fields of the challenge's form.

    Args:
        system: the ensemble with its members.
        info: the label, and information that only the authors have.
    """
    trials = [member.trial for member in system.members]
    stages = [stage for trial in trials for stage in list_stages(trial)]
    number = len(system.members)
    parameters = {member.candidate.signature: member.parameters for member in system.members}
    last = info.label.rpartition("_")[2]
    return {
        "submission": {
            "label": info.label,
            "name": info.name or (f"Ensemble of {number} dual encoders" if number > 1 else "Dual encoder"),
            "abbreviation": info.abbreviation or f"{'ens' if number > 1 else 'single'}{number}-{last}",
            "authors": list(info.authors),
        },
        "system": {
            "description": {
                "end_to_end": True,
                "input_sampling_rate": f"{SAMPLE_RATE_HZ / 1000:g}kHz",
                "acoustic_features": "log-mel energies",
                "audio_modelling": join_unique(encoders.format_label(trial.audio) for trial in trials),
                "word_embeddings": join_unique(encoders.format_label(trial.text) for trial in trials),
                "data_augmentation": join_unique(
                    augmentation for trial in stages for augmentation in describe_augmentations(trial)
                )
                or "none",
                "training_data": join_unique(split for trial in stages for split in trial.train),
                "loss_function": join_unique(loss for trial in stages for loss in list_losses(trial)),
                "optimizer": "Adam",
                "learning_rate": join_unique(map(describe_rates, stages)),
                "batch_size": join_unique(str(trial.batch_size) for trial in stages),
                "gradient_clipping": join_unique(f"{trial.clip_norm:g}" for trial in stages if trial.clip_norm) or None,
                "metric_monitored": join_unique(f"mAP@10 on {trial.validation}" for trial in trials),
                "machine_learning_method": "dual encoder",
                "ensemble": FUSION_LABELS[system.ensemble.fusion] if number > 1 else None,
                "ensemble_method_subsystem_count": number,
                "ensemble_members": [build_member_entry(member, system) for member in system.members],
            },
            "complexity": {"total_parameters": sum(parameters.values())},
            "external_datasets": list_external_data(stages),
            "source_code": info.source_code,
        },
        "results": {"development_testing": list_results(system.ensemble)},
    }


def join_unique(words: Iterable[str]) -> str:
    """Return the words in order of their first occurrence, each once, separated by commas."""
    return ", ".join(dict.fromkeys(words))


def describe_rates(trial: Trial) -> str:
    """Return a trial's peak learning rate as text, with its stage and its settings of the rates of parts."""
    return f"{trial.schedule.peak_rate:g} ({'; '.join([trial.stage, *describe_rate_settings(trial)])})"


def list_losses(trial: Trial) -> list[str]:
    """Return the names of the losses that a trial is trained with."""
    return ["NT-Xent"] * (not trial.teachers or trial.hard_share > 0) + ["distillation"] * bool(trial.teachers)


def describe_augmentations(trial: Trial) -> list[str]:
    """Return a description of each of a trial's augmentations in training, such as 'random crops of 30 s'."""
    augmentations = [f"random crops of {trial.longest_audio_s:g} s", *trial.audio.augmentations]
    if trial.paraphrase_probability:
        augmentations.append(f"paraphrased captions (p = {trial.paraphrase_probability:g})")
    if trial.mix_probability:
        augmentations.append(f"PairMix (p = {trial.mix_probability:g})")
    if trial.gain_db:
        augmentations.append(f"random gain of up to {trial.gain_db:g} dB")
    if trial.filter_db:
        augmentations.append(f"random filters of up to {trial.filter_db:g} dB (FilterAugment)")
    return augmentations


def build_member_entry(member: SystemMember, system: System) -> dict[str, Any]:
    """Return the part of the metadata that describes a member: its name, share of the weights, encoders and number of
    parameters, and its validation mAP@10 if the ledger has it.
    """
    entry = {
        "name": member.candidate.name,
        "weight": round(member.weight / sum(other.weight for other in system.members), 4),
        "audio_modelling": (
            f"{encoders.format_label(member.trial.audio)}, segments of {member.trial.audio.segment_s:g} s"
        ),
        "word_embeddings": encoders.format_label(member.trial.text),
        "parameters": member.parameters,
    }
    metrics = member.candidate.run.metrics if member.candidate.run else {}
    return entry | ({"validation_mAP@10": round(metrics["best_map10"], 4)} if "best_map10" in metrics else {})


def list_external_data(stages: Sequence[Trial]) -> list[dict[str, str]]:
    """Return the part of the metadata that lists external data: corpora other than the challenge's own, and the
    published weights that training started from, each with its name and purpose. `stages` are the trainings of all
    members, pretrainings included.
    """
    splits = [split for trial in stages for split in trial.train if SplitId.parse(split).corpus != CHALLENGE_CORPUS]
    corpora = [
        {
            "name": corpus,
            "purpose": join_unique(
                trial.stage for trial in stages for split in trial.train if is_of_corpus(split, corpus)
            ),
            "splits": join_unique(split for split in splits if is_of_corpus(split, corpus)),
        }
        for corpus in dict.fromkeys(SplitId.parse(split).corpus for split in splits)
    ]
    started_from = join_unique(
        encoders.format_label(config) for trial in stages for config in (trial.audio, trial.text) if config.is_published
    )
    return corpora + [
        {"name": name, "purpose": "initialisation (published weights)"}
        for name in filter(None, started_from.split(", "))
    ]


def is_of_corpus(split: str, corpus: str) -> bool:
    """Return whether a split, 'corpus/split', belongs to a corpus."""
    return SplitId.parse(split).corpus == corpus


def list_results(ensemble: Ensemble) -> dict[str, float | None]:
    """Return an ensemble's metrics on the development set's test split, as fractions by title; a metric that was not
    computed is None. If members were retrained, the metrics are those of the ensemble before the retraining.
    """
    test = ensemble.test_when_selected
    metrics = test.systems.get("ensemble", {}) if test else {}
    names = RESULT_METRICS | {name: title for name, title in OPTIONAL_RESULT_METRICS.items() if name in metrics}
    return {title: round(metrics[name].value, 4) if name in metrics else None for name, title in names.items()}
