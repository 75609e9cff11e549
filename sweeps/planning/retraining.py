"""The members of a chosen ensemble, trained once more on all there is: for a challenge's submission, or for use.

As the paper did: the splits that chose and judged the members are trained on, too, and each training ends after the
epoch that validation had found best. What comes out can't be judged by those splits any more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from data.errors import UserError
from data.store.files import is_number
from trainables import trial as trials
from trainables.schedule import Schedule
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


def members(ensemble: Any, path: Path, begin: From) -> list[Member]:
    """What an ensemble.json says of its members. Raises UserError, with its path, for one that can't be trained."""
    entries = ensemble.get("members") if isinstance(ensemble, dict) else None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} has no members")
    found = []
    for number, entry in enumerate(entries, start=1):
        try:
            found.append(member_of(entry, begin))
        except UserError as error:
            name = f", {entry['name']!r}" if isinstance(entry, dict) and "name" in entry else ""
            raise UserError(f"{path}, member {number}{name}: {error}") from error
    return found


def member_of(entry: Any, begin: From) -> Member:
    """An entry of an ensemble.json as a member. Raises UserError that says why it can't be trained again."""
    if not isinstance(entry, dict) or not {"trial", "epoch", "weight", "name"} <= entry.keys():
        raise UserError("it doesn't say how it was trained (a file of scores?): it can't be trained again")
    weight = entry["weight"]
    if not is_number(weight) or weight < 0:
        raise UserError(f"its weight is {weight!r}: it must be a number from 0 on")
    trial = trials.from_json(entry["trial"])
    if trial.final_epoch is not None:
        raise UserError("it has been trained on all splits already")
    if begin == "finetuning" and trial.pretraining is None:
        return Member(entry, trial, is_retrained=False)
    if begin == "pretraining" and trial.pretraining and "pretraining_epoch" not in entry:
        raise UserError("it doesn't say which epoch of its pretraining was best; use --retrain-from finetuning")
    return Member(entry, final(trial, entry, begin), is_retrained=True)


def final(trial: Trial, entry: Mapping[str, Any], begin: From) -> Trial:
    """The trial on all splits, its stages ending after the epochs that were best."""
    also = (trial.validation, trial.test)
    parent = trial.pretraining
    if parent and begin == "pretraining":
        last = last_epoch(parent, entry, "pretraining_epoch")
        parent = replace(parent, train=with_all(parent.train, also), final_epoch=last)
    last = last_epoch(trial, entry, "epoch")
    return replace(trial, train=with_all(trial.train, also), final_epoch=last, pretraining=parent)


def last_epoch(stage: Trial, entry: Mapping[str, Any], key: str) -> int:
    """The epoch that a stage is to end after. Raises UserError where it is none, or the rate needs validation."""
    if not isinstance(stage.schedule, Schedule):
        otherwise = ", or leave it as it is with --retrain-from finetuning" if stage.stage == "pretraining" else ""
        raise UserError(
            f"the schedule of its {stage.stage} goes by validation losses, and with all splits trained on there are "
            f"none: take the member out of the file{otherwise}"
        )
    epoch, most = entry[key], stage.schedule.epochs
    if not isinstance(epoch, int) or isinstance(epoch, bool) or not 1 <= epoch <= most:
        raise UserError(f"its {key} is {epoch!r}: it must be a whole number from 1 to {most}")
    return epoch


def with_all(train: Sequence[str], also: Sequence[str]) -> tuple[str, ...]:
    """The splits to train on, each once."""
    return tuple(dict.fromkeys([*train, *also]))


def retrained(
    chosen: Mapping[str, Any], found: Sequence[Member], runs: Mapping[Trial, tuple[str, str]]
) -> dict[str, Any]:
    """The ensemble.json of the retrained members, with the weights that were chosen; `runs` has signatures and run ids.

    The figures of the ensemble that was chosen are kept under 'before_retraining': its own aren't known.
    """
    ensemble = dict(chosen)
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
