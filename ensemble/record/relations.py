"""Sentences on members of an ensemble that are related, so that they aren't taken for independent models."""

from collections.abc import Sequence

from trainables.records.ensemble_file import Ensemble, Member


def describe_relations(ensemble: Ensemble) -> list[str]:
    """Return a sentence for each member that is a student of other members, for each one that is a soup, and for each
    training of which several members are models after different epochs.
    """
    students = [
        f"{member.name} ({member.signature}) is a student of other members: {list_names(teachers)}"
        for member, teachers in ensemble.list_students()
    ]
    soups = [
        f"{member.name} ({member.signature}) is a soup, the mean of the weights of: {', '.join(parts)}"
        for member, parts in ensemble.list_soups()
    ]
    snapshots = [
        f"{len(members)} members are snapshots of one training, after {format_epochs(members)}: {list_names(members)}"
        for members in ensemble.list_snapshots()
    ]
    return students + soups + snapshots


def list_names(members: Sequence[Member]) -> str:
    """Return the names and signatures of members as text."""
    return ", ".join(f"{member.name} ({member.signature})" for member in members)


def format_epochs(members: Sequence[Member]) -> str:
    """Return the epochs of the members of one training as text, such as 'epochs 5, 10 and 12 (best)'."""
    names = [f"{member.epoch}{'' if member.snapshot_of else ' (best)'}" for member in members]
    return f"epochs {', '.join(names[:-1])} and {names[-1]}"
