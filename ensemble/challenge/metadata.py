"""Metadata of a submitted system in the challenge's form, from its members' configs, the ledger and ensemble.json.

Of the form, the part on the submission and its authors is cited from DCASE's example packages; the names of the fields
on task 6's systems are assumed (the form itself couldn't be had: compare them with the year's). What only its authors
can say is never made up: it holds a placeholder, or is left out, until it is given.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data.errors import UserError
from data.schema import SAMPLE_RATE_HZ, SplitId
from ensemble.challenge.systems import Member, System, stages_of
from trainables import encoders
from trainables.records.ensemble_file import FUSION_LABELS, Ensemble
from trainables.retrieval import METRICS, TITLES
from trainables.trial import Trial

PLACEHOLDER = "LASTNAME_INSTITUTE"
"""Beginning of labels as long as the authors are unknown."""

OWN = "clotho"
"""Corpus of the challenge; all others count as external data."""

RESULTS = {name: TITLES[name] for name in METRICS}
"""Metrics on the development set's test split, by their names in ensemble.json."""

MOST_CHARACTERS = 10
"""Maximum number of characters of an abbreviation (cited: the comments of the form)."""


@dataclass(frozen=True)
class Given:
    """Information about a system that only its authors have."""

    label: str
    name: str | None
    abbreviation: str | None
    authors: Sequence[Mapping[str, Any]]
    source_code: str | None


def read_authors(path: Path) -> list[dict[str, Any]]:
    """Return the authors in a YAML file: a list as in the challenge's form, or that list under `authors`."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} isn't YAML in UTF-8: {' '.join(str(error).split())}") from error
    authors = found.get("authors") if isinstance(found, dict) else found
    if not isinstance(authors, list) or not authors or not all(isinstance(author, dict) for author in authors):
        raise UserError(
            f"{path}: it needs a list of authors, each with lastname, firstname, email, corresponding (true for one) "
            "and affiliation (abbreviation, institute, department, location)"
        )
    return authors


def label_of(given: str | None, authors: Iterable[Mapping[str, Any]]) -> str:
    """Return the beginning of the labels: as given, or from the corresponding author, or a placeholder.

    Raises UserError for a given one that isn't two words.
    """
    if given:
        if not re.fullmatch(r"[^\W_]+(-[^\W_]+)*_[^\W_]+(-[^\W_]+)*", given):
            raise UserError(
                f"--label {given!r}: give LASTNAME_INSTITUTE, one word each; task and number are added to it"
            )
        return given
    for author in authors:
        affiliation = author.get("affiliation")
        institute = affiliation.get("abbreviation") if isinstance(affiliation, dict) else None
        words = [re.sub(r"[\W_]+", "", str(word or "")) for word in (author.get("lastname"), institute)]
        if author.get("corresponding") is True and all(words):
            return "_".join(words)
    return PLACEHOLDER


def describe(system: System, given: Given) -> dict[str, Any]:
    """Return a system's metadata in the challenge's form."""
    trials = [member.trial for member in system.members]
    stages = [stage for trial in trials for stage in stages_of(trial)]
    number = len(system.members)
    parameters = {member.candidate.signature: member.parameters for member in system.members}
    last = given.label.rpartition("_")[2]
    return {
        "submission": {
            "label": given.label,
            "name": given.name or (f"Ensemble of {number} dual encoders" if number > 1 else "Dual encoder"),
            "abbreviation": given.abbreviation or f"{'ens' if number > 1 else 'single'}{number}-{last}",
            "authors": list(given.authors),
        },
        "system": {
            "description": {
                "end_to_end": True,
                "input_sampling_rate": f"{SAMPLE_RATE_HZ / 1000:g}kHz",
                "acoustic_features": "log-mel energies",
                "audio_modelling": joined(encoders.label(trial.audio) for trial in trials),
                "word_embeddings": joined(encoders.label(trial.text) for trial in trials),
                "data_augmentation": joined(told for trial in stages for told in augmentations(trial)) or "none",
                "training_data": joined(split for trial in stages for split in trial.train),
                "loss_function": "NT-Xent",
                "optimiser": "Adam",
                "learning_rate": joined(f"{trial.schedule.peak_rate:g} ({trial.stage})" for trial in stages),
                "batch_size": joined(str(trial.batch_size) for trial in stages),
                "gradient_clipping": joined(f"{trial.clip_norm:g}" for trial in stages if trial.clip_norm) or None,
                "metric_monitored": joined(f"mAP@10 on {trial.validation}" for trial in trials),
                "ensemble": FUSION_LABELS[system.ensemble.fusion] if number > 1 else None,
                "ensemble_size": number,
                "ensemble_members": [member_json(member, system) for member in system.members],
            },
            "complexity": {"total_parameters": sum(parameters.values())},
            "external_datasets": external(stages),
            "source_code": given.source_code,
        },
        "results": {"development_testing": results(system.ensemble)},
    }


def joined(words: Iterable[str]) -> str:
    """Return the words in order, each once."""
    return ", ".join(dict.fromkeys(words))


def augmentations(trial: Trial) -> list[str]:
    """Return the augmentations of a training as its config states them."""
    told = [f"random crops of {trial.longest_audio_s:g} s", *trial.audio.augmentations]
    if trial.paraphrase_probability:
        told.append(f"paraphrased captions (p = {trial.paraphrase_probability:g})")
    return told


def member_json(member: Member, system: System) -> dict[str, Any]:
    """Return a member as listed in the metadata, with its validation metric from the ledger."""
    told = {
        "name": member.candidate.name,
        "weight": round(member.weight / sum(other.weight for other in system.members), 4),
        "audio_modelling": f"{encoders.label(member.trial.audio)}, segments of {member.trial.audio.segment_s:g} s",
        "word_embeddings": encoders.label(member.trial.text),
        "parameters": member.parameters,
    }
    metrics = member.candidate.run.metrics if member.candidate.run else {}
    return told | ({"validation_mAP@10": round(metrics["best_map10"], 4)} if "best_map10" in metrics else {})


def external(stages: Sequence[Trial]) -> list[dict[str, str]]:
    """Return the corpora other than the challenge's own, and the published weights that training started from."""
    splits = [split for trial in stages for split in trial.train if SplitId.parse(split).corpus != OWN]
    found = [
        {
            "name": corpus,
            "purpose": joined(trial.stage for trial in stages for split in trial.train if of_corpus(split, corpus)),
            "splits": joined(split for split in splits if of_corpus(split, corpus)),
        }
        for corpus in dict.fromkeys(SplitId.parse(split).corpus for split in splits)
    ]
    started_from = joined(
        encoders.label(config) for trial in stages for config in (trial.audio, trial.text) if config.is_published
    )
    return found + [
        {"name": name, "purpose": "published weights to start from"} for name in filter(None, started_from.split(", "))
    ]


def of_corpus(split: str, corpus: str) -> bool:
    """Return whether a split, 'corpus/split', belongs to a corpus."""
    return SplitId.parse(split).corpus == corpus


def results(ensemble: Ensemble) -> dict[str, float | None]:
    """Return the metrics on the development set's test split; for retrained members, those from before retraining."""
    test = ensemble.test_when_selected
    figures = test.systems.get("ensemble", {}) if test else {}
    return {title: round(figures[name].value, 4) if name in figures else None for name, title in RESULTS.items()}
