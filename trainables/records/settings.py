"""Settings of trials by name, as MLflow and reports show them."""

from collections.abc import Iterator
from typing import Any

from trainables.trial import Trial, to_json


def describe_teachers(trial: Trial) -> str:
    """Return the names and weights of a trial's teachers as text."""
    return ", ".join(f"{teacher.name} (weight {teacher.weight:g})" for teacher in trial.teachers)


def describe_settings(trial: Trial) -> dict[str, Any]:
    """Return the trial as `to_json` does, but with its teachers and the trials of a soup as text, since their configs
    are long.
    """
    described = {
        "teachers": describe_teachers(trial),
        "average_of": ", ".join(part.name for part in trial.average_of),
    }
    return to_json(trial) | {name: text for name, text in described.items() if text}


def flatten_settings(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested settings as pairs of name and value, as MLflow's parameters: {'schedule': {'epochs': 5}} gives
    ('schedule.epochs', 5). Each name begins with `prefix`.
    """
    for key, item in value.items():
        if isinstance(item, dict):
            yield from flatten_settings(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item
