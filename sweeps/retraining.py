"""The members of a chosen ensemble, trained once more on all there is: for a challenge's submission, or for use.

As the paper did: the splits that chose and judged the members are trained on, too, and each training ends after the
epoch that validation had found best. What comes out can't be judged by those splits any more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from data.errors import UserError
from data.shards import read_json
from trainables import trial as trials
from trainables.trial import Trial

From = Literal["pretraining", "finetuning"]
"""Where it begins: both stages are trained again, or the fine-tuning alone, over the pretraining that is there."""

FIGURES = ("validation", "test", "nested", "methods", "sizes", "likeness", "front", "cost", "trajectory", "candidates")
"""Of the ensemble as it was chosen: those of its retrained members aren't known."""


@dataclass(frozen=True)
class Member:
    """A member of an ensemble.json, and what is trained in its place."""

    entry: Mapping[str, Any]
    trial: Trial
    is_retrained: bool


def members(path: Path, begin: From) -> list[Member]:
    """What an ensemble.json says of its members. Raises UserError where one can't be trained again."""
    ensemble = read_json(path)
    entries = ensemble.get("members") if isinstance(ensemble, dict) else None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} has no members")
    found = []
    for number, entry in enumerate(entries, start=1):
        where = f"{path}, member {number}"
        if not isinstance(entry, dict) or not {"trial", "epoch", "weight", "name"} <= entry.keys():
            raise UserError(
                f"{where}: it doesn't say how it was trained (a file of scores?): it can't be trained again"
            )
        trial = trials.from_json(entry["trial"])
        if trial.final_epoch is not None:
            raise UserError(f"{where}, {entry['name']!r}, has been trained on all splits already")
        if begin == "finetuning" and trial.pretraining is None:
            found.append(Member(entry, trial, is_retrained=False))
            continue
        if begin == "pretraining" and trial.pretraining and "pretraining_epoch" not in entry:
            raise UserError(
                f"{where}: it doesn't say which epoch of its pretraining was best; use --retrain-from finetuning"
            )
        found.append(Member(entry, final(trial, entry, begin), is_retrained=True))
    return found


def final(trial: Trial, entry: Mapping[str, Any], begin: From) -> Trial:
    """The trial on all splits, its stages ending after the epochs that were best."""
    also = (trial.validation, trial.test)
    parent = trial.pretraining
    if parent and begin == "pretraining":
        parent = replace(parent, train=with_all(parent.train, also), final_epoch=entry["pretraining_epoch"])
    return replace(trial, train=with_all(trial.train, also), final_epoch=entry["epoch"], pretraining=parent)


def with_all(train: Sequence[str], also: Sequence[str]) -> tuple[str, ...]:
    """The splits to train on, each once."""
    return tuple(dict.fromkeys([*train, *also]))


def retrained(path: Path, found: Sequence[Member], runs: Mapping[Trial, tuple[str, str]]) -> dict[str, Any]:
    """The ensemble.json of the retrained members, with the weights that were chosen; `runs` has signatures and run ids.

    The figures of the ensemble that was chosen are kept under 'before_retraining': its own aren't known.
    """
    ensemble = dict(read_json(path))
    before = {name: ensemble.pop(name) for name in FIGURES if name in ensemble}
    ensemble.pop("best_single", None)
    ensemble["members"] = []
    for member in found:
        entry = {
            key: member.entry[key] for key in ("name", "weight", "count", "run_id", "signature") if key in member.entry
        }
        if member.is_retrained:
            signature, run_id = runs[member.trial]
            entry |= {"name": member.trial.name, "signature": signature, "run_id": run_id, "retrained": True}
        ensemble["members"].append(entry)
    return ensemble | {"before_retraining": before}
