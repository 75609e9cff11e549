"""The file of an ensemble, ensemble.json, as anybody reads it who has its members."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import UserError
from data.store.files import is_number, read_json

FORMAT_VERSION = 2


def read_ensemble(path: Path) -> dict[str, Any]:
    """An ensemble.json. Raises UserError that names what is wrong with it."""
    ensemble = read_json(path)
    members = ensemble.get("members") if isinstance(ensemble, dict) else None
    if not isinstance(members, list) or not members:
        raise UserError(f"{path} has no members")
    for number, member in enumerate(members, start=1):
        weight = member.get("weight") if isinstance(member, dict) else None
        if not is_number(weight) or weight < 0 or "name" not in member:
            raise UserError(
                f"{path}, member {number}: it needs a name, and a weight that isn't negative, not {weight!r}"
            )
    whole = sum(member["weight"] for member in members)
    if not whole:
        raise UserError(f"{path}: all weights are 0")
    counts = [member.get("count") for member in members]
    if counts != [None] * len(counts):
        if not all(isinstance(count, int) and count >= 0 for count in counts) or not sum(counts):
            raise UserError(f"{path}: 'count' has to be a whole number from 0 on for each member, or be left out")
        for number, member in enumerate(members, start=1):
            if not np.isclose(member["count"] / sum(counts), member["weight"] / whole, atol=1e-6):
                raise UserError(
                    f"{path}, member {number}: its count ({member['count']} of {sum(counts)}) isn't its weight "
                    f"({member['weight']}); leave 'count' out of all members to have the weights count"
                )
    return dict(ensemble)


def require_version(ensemble: Mapping[str, Any], path: Path | str) -> None:
    """Raise UserError for an ensemble.json that later code wrote."""
    version = ensemble.get("format_version", FORMAT_VERSION)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version!r}, this code reads {FORMAT_VERSION}: choose the ensemble again"
        )


def weights_of(ensemble: Mapping[str, Any]) -> list[float]:
    """Its members' weights: how often each counts, where that is known, so that sums of scores stay exact."""
    return [member.get("count", member["weight"]) for member in ensemble["members"]]
