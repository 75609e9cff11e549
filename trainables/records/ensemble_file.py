"""The file of a selected ensemble, ensemble.json: its fields, and the only code that reads, validates and writes it.

Earlier formats are converted by `trainables.records.ensemble_formats`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Predicate

from data.errors import UserError
from data.store.files import read_json, write_json
from trainables.records.ensemble_formats import migrate_format_2

if TYPE_CHECKING:
    from pydantic import TypeAdapter

FORMAT_VERSION = 3
"""Version of the format. Version 2, the first with a number, stores the interval of a metric as NAME_interval."""

Direction = Literal["t2a", "a2t"]
"""Text-to-audio or audio-to-text retrieval."""

Fusion = Literal["mean", "zscore", "rank", "inverted-softmax", "dynamic-inverted-softmax"]
"""Quantity averaged over members: scores, the z-norms or ranks of each query's scores, or scores normalised by a query
bank.
"""

BANK_FUSIONS: tuple[Fusion, ...] = ("inverted-softmax", "dynamic-inverted-softmax")
"""Fusions that normalise scores by a query bank, with a temperature."""

FUSION_LABELS: Mapping[Fusion, str] = {
    "mean": "weighted mean of scores",
    "zscore": "weighted mean of scores after z-norm of each query's",
    "rank": "weighted mean of the ranks of each query's scores",
    "inverted-softmax": "weighted mean of scores normalised by a query bank (inverted softmax)",
    "dynamic-inverted-softmax": "weighted mean of scores normalised by a query bank (dynamic inverted softmax)",
}

NotNegative = Annotated[float, Ge(0)]

Temperature = Annotated[float, Ge(0.001)]
"""Temperature of a normalisation. A cosine divided by it must not overflow."""

SIGNATURE = re.compile(r"[0-9a-f]{16}")
"""Form of a trial's signature, which is part of paths and of queries: 16 lowercase hexadecimal digits."""


def is_signature(text: str) -> bool:
    """Return whether a text has the form of a trial's signature."""
    return SIGNATURE.fullmatch(text) is not None


@dataclass(frozen=True)
class Estimate:
    """Mean of a metric over queries, and its 95 % bootstrap interval."""

    value: float
    interval: tuple[float, float]

    @property
    def percent(self) -> str:
        """Value and interval in percent as text, such as '42.10 (40.3 to 44.0)'."""
        low, high = (100 * limit for limit in self.interval)
        return f"{100 * self.value:.2f} ({low:.1f} to {high:.1f})"


Estimates = Mapping[str, Estimate]
"""Estimates by the name of the metric."""


@dataclass(frozen=True)
class Member:
    """Member of an ensemble: a trial or a file of scores, with its weight and its contribution to the metric."""

    name: str
    weight: NotNegative
    signature: Annotated[str, Predicate(is_signature)] = ""  # signature of a trial; absent for a file of scores
    run_id: str = ""
    folder: str = ""  # folder of a file of scores
    count: Annotated[int, Ge(0)] | None = None  # number of times that the selection added it
    alone: float | None = None  # metric of the member alone, on validation
    without: float | None = None  # metric of the ensemble without the member, minus that of the ensemble
    shapley: float | None = None
    trial: dict[str, Any] | None = None  # config of the trial, to retrain it
    epoch: int | None = None  # best epoch, from 1
    pretraining_epoch: int | None = None
    retrained: bool = False  # whether it was retrained on all splits after the selection
    teachers: tuple[str, ...] = ()  # signatures of the trials that are its teachers
    average_of: tuple[str, ...] = ()  # signatures of the parts of a soup
    snapshot_of: Annotated[str, Predicate(is_signature)] = ""  # training of which it is the model after `epoch`


@dataclass(frozen=True)
class SplitMetrics:
    """Metrics on one split, by the name of a system: 'ensemble', the system that it is compared with, such as
    'best_single', and 'difference', the ensemble's metrics minus that system's.
    """

    split: str
    fingerprint: str
    systems: Mapping[str, Estimates] = field(default_factory=dict)


@dataclass(frozen=True)
class NestedMetrics:
    """Result of nested cross-validation: the metric of the selection method on folds that it did not select on."""

    folds: int
    ensemble: Estimate
    best_single: Estimate
    optimism: float  # metric on the split used for selection, minus the nested metric
    redoes_epochs: bool  # whether each trial's epoch was chosen within the folds, too


@dataclass(frozen=True)
class Method:
    """Selection method that was compared with others: the ensemble that it selects, and that ensemble's metrics."""

    name: str
    members: tuple[Member, ...]
    validation: Estimates
    nested: Estimate | None = None
    test: Estimates | None = None


@dataclass(frozen=True)
class SelectionStep:
    """Step of a selection: the candidate that was added and the one that was removed, each by signature or name (None:
    no candidate), and the ensemble's metric afterwards.
    """

    value: float
    added: str | None = None
    removed: str | None = None


@dataclass(frozen=True)
class NormalisationForm:
    """The selected members and weights with a form of normalisation, or with none: the metric, and the skewness of the
    k-occurrence (k = 10), by which hubness is measured.
    """

    name: str
    validation: Estimate
    skewness: float  # on validation
    temperature: Temperature | None = None
    test: Estimate | None = None
    test_skewness: float | None = None


@dataclass(frozen=True)
class Normalisation:
    """Query-bank normalisation of an ensemble's scores, for the fusions of BANK_FUSIONS."""

    temperature: Temperature
    forms: tuple[NormalisationForm, ...] = ()


@dataclass(frozen=True)
class SoupPart:
    """Model that a soup may contain: a trial, or a training after one of its epochs."""

    name: str
    signature: Annotated[str, Predicate(is_signature)]


@dataclass(frozen=True)
class SoupComparison:
    """Soups of the models of one origin, compared with the best of these models and with their ensembles.

    `validation` and `test` have the selection's metric, from scores without normalisation, by the name of the system:
    'best_part'; the soups 'greedy' and 'uniform'; the means of the scores of their parts, 'kept_ensemble' and
    'ensemble'; and the differences 'greedy_minus_best_part', 'greedy_minus_kept_ensemble' and 'uniform_minus_ensemble',
    whose intervals are paired.
    """

    origin: str  # name of the pretraining, or of the training whose epochs they are
    parts: tuple[SoupPart, ...]  # by descending metric on validation
    kept: tuple[str, ...]  # signatures of the parts of the greedy soup
    greedy: str  # signature of the greedy soup; of the best part if no other is kept
    uniform: str
    validation: Estimates
    test: Estimates | None = None


@dataclass(frozen=True)
class ParetoPoint:
    """Ensemble on the Pareto front of cost and metric: no cheaper ensemble has as high a metric."""

    cost: float
    value: float
    members: tuple[str, ...]


@dataclass(frozen=True)
class Ensemble:
    """A selected ensemble: its members, the selection method, and its metrics as far as they are known."""

    __pydantic_config__: ClassVar = {"strict": True, "allow_inf_nan": False}

    members: tuple[Member, ...]
    pool: str = ""  # sweeps and folders of the candidates
    metric: str = "map10"
    metrics: tuple[str, ...] = ()  # names of the reported metrics, `metric` first
    method: str = ""  # description of the method
    fusion: Fusion = "mean"
    direction: Direction = "t2a"
    normalisation: Normalisation | None = None
    best_single: Member | None = None
    validation: SplitMetrics | None = None
    test: SplitMetrics | None = None
    nested: NestedMetrics | None = None
    methods: tuple[Method, ...] = ()
    trajectory: tuple[SelectionStep, ...] = ()
    sizes: Mapping[str, tuple[Estimate, ...]] = field(default_factory=dict)  # metrics after each step, by split
    share_kept: float | None = None  # share of the pool's scores that pruning kept
    likeness: tuple[tuple[float, ...], ...] = ()  # correlation of the members' values over queries [N, N]
    candidates: tuple[str, ...] = ()
    cost: str | None = None  # kind of cost in `front`
    front: tuple[ParetoPoint, ...] = ()
    soups: tuple[SoupComparison, ...] = ()
    before_retraining: "Ensemble | None" = None  # with the metrics, which retrained members lack

    @property
    def temperature(self) -> float | None:
        """Temperature of the query-bank normalisation; None without one."""
        return self.normalisation.temperature if self.normalisation else None

    @property
    def weights(self) -> list[float]:
        """Weight of each member, in the order of the members. It is the number of times that the selection added the
        member, if that is known, since sums of scores weighted by integers are exact.
        """
        return [member.weight if member.count is None else member.count for member in self.members]

    def list_students(self) -> list[tuple[Member, list[Member]]]:
        """Return the members that are students of other members, each with these teachers."""
        taught = [(one, [other for other in self.members if other.signature in one.teachers]) for one in self.members]
        return [(member, teachers) for member, teachers in taught if teachers]

    def list_soups(self) -> list[tuple[Member, list[str]]]:
        """Return the members that are soups, each with its parts: their names as far as they are known, otherwise their
        signatures.
        """
        names = {part.signature: part.name for soup in self.soups for part in soup.parts}
        return [
            (member, [names.get(signature, signature) for signature in member.average_of])
            for member in self.members
            if member.average_of
        ]

    def list_snapshots(self) -> list[list[Member]]:
        """Return the groups of two or more members that are models of one training, each sorted by epoch."""
        groups: dict[str, list[Member]] = {}
        for member in sorted(self.members, key=lambda member: member.epoch or 0):
            if member.signature:
                groups.setdefault(member.snapshot_of or member.signature, []).append(member)
        return [group for group in groups.values() if len(group) > 1]

    def metrics_on(self, split: str) -> SplitMetrics | None:
        """Return the metrics on 'validation' or 'test'; None if they have not been computed."""
        return self.validation if split == "validation" else self.test

    @property
    def test_when_selected(self) -> SplitMetrics | None:
        """Test metrics of the ensemble as it was selected: if its members were retrained, the metrics before the
        retraining. None if they have not been computed.
        """
        return self.test or (self.before_retraining.test if self.before_retraining else None)


def read_ensemble(path: Path) -> Ensemble:
    """Return the ensemble in an ensemble.json file of the current format or an earlier one.

    Raises UserError, which names the file and the invalid field, if the content is invalid.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: not an ensemble.json: it must contain a JSON object")
    version = content.get("format_version", 2)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise UserError(
            f"{path}: format_version is {version!r}, and this version of Chorale reads formats up to {FORMAT_VERSION}: "
            "update Chorale, or select the ensemble again"
        )
    try:
        ensemble = parse_content(migrate_format_2(content, str(path)) if version < FORMAT_VERSION else content, path)
    except RecursionError as error:
        raise UserError(f"{path}: before_retraining is nested too deeply: select the ensemble again") from error
    require_consistent_weights(ensemble, path)
    if (ensemble.fusion in BANK_FUSIONS) != (ensemble.normalisation is not None):
        fusions = " and ".join(BANK_FUSIONS)
        raise UserError(f"{path}: normalisation: the fusions {fusions} have one, the others none; select it again")
    return ensemble


def require_indexable(ensemble: Ensemble, path: Path) -> None:
    """Raise UserError unless the ensemble's scores of any clips and sentences are dot products of vectors, which an
    index needs: they are for the weighted mean of the members' scores, and for that of scores minus an offset per clip.
    """
    if ensemble.fusion not in ("mean", "inverted-softmax"):
        label = FUSION_LABELS[ensemble.fusion]
        raise UserError(
            f"{path}: an index needs the fusion by the mean of scores or by inverted-softmax, not the {label}"
        )


def write_ensemble(path: Path, ensemble: Ensemble) -> None:
    """Write an ensemble.json file atomically. Fields that have their default values are omitted, except metric, fusion
    and direction.
    """
    always = {"metric": ensemble.metric, "fusion": ensemble.fusion, "direction": ensemble.direction}
    content = type_adapter().dump_python(ensemble, mode="json", exclude_defaults=True)
    write_json(path, {"format_version": FORMAT_VERSION, **always, **content})


SIGNATURE_RULE = (
    "a signature consists of 16 lowercase hexadecimal digits (leave it out for a file of scores; don't use a file that "
    "somebody else edited)"
)
"""Part of the message about any other signature."""


@cache
def type_adapter() -> "TypeAdapter[Ensemble]":
    """Return pydantic's converter between `Ensemble` and JSON. It is built at the first call."""
    from pydantic import TypeAdapter

    return TypeAdapter(Ensemble)


def parse_content(content: Mapping[str, Any], path: Path) -> Ensemble:
    """Return the ensemble for the parsed JSON of an ensemble.json file. Raises UserError that names the first invalid
    field.
    """
    from pydantic import ValidationError

    try:
        return type_adapter().validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        field_path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
        actual = "" if first["type"] == "missing" else f", not {repr(first['input'])[:80]}"
        rule = SIGNATURE_RULE if first["type"] == "predicate_failed" else first["msg"]
        raise UserError(f"{path}: {field_path}: {rule}{actual}") from error


def require_consistent_weights(ensemble: Ensemble, path: Path) -> None:
    """Raise UserError if there is no member, all weights are 0, or counts and weights contradict each other."""
    members = ensemble.members
    total = sum(member.weight for member in members)
    if not total:
        problem = "all weights are 0" if members else "there are none"
        raise UserError(f"{path}: members: {problem}; select the ensemble again")
    counts = [member.count for member in members if member.count is not None]
    if not counts:
        return
    if len(counts) < len(members) or not sum(counts):
        raise UserError(
            f"{path}: members: give a count to each of them, at least one above 0, or remove 'count' from all members"
        )
    for index, (member, count) in enumerate(zip(members, counts, strict=True)):
        if not np.isclose(count / sum(counts), member.weight / total, atol=1e-6):
            raise UserError(
                f"{path}: members[{index}].count: {count} of {sum(counts)} contradicts its weight, {member.weight}; "
                "remove 'count' from all members to use the weights"
            )
