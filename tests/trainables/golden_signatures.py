"""Write golden_signatures.json: the defaults of configs, and the signatures of the trials of all spaces as they are.

    python tests/trainables/golden_signatures.py

Run it after a change on purpose. A changed default or a changed signature means that the same trial has another result:
then `TRAINING_VERSION` has to be raised. A new setting adds a default and changes no signature.
"""

import dataclasses
import json
from pathlib import Path

from data.splits import Splits
from sweeps import spaces
from trainables import encoders
from trainables.schedule import Plateau, Schedule
from trainables.signature import TRAINING_VERSION, Fingerprints, sign
from trainables.trial import Trial, iter_required_trials

FILE = Path(__file__).with_suffix(".json")
SPLITS = Splits("c/train", "c/validation", "c/test", ("c/train", "d/train"))


def defaults(config_class):
    """The declared defaults of a config's fields."""
    fields = dataclasses.fields(config_class)
    return {field.name: repr(field.default) for field in fields if field.default is not dataclasses.MISSING}


def config_classes():
    """The classes that a trial consists of, by name."""
    found = {"Trial": Trial, "Schedule": Schedule, "Plateau": Plateau}
    for kind in ("audio", "text"):
        for name in encoders.list_families(kind):
            config_class = encoders.load_family(kind, name).Config
            found[f"{kind} {name}"] = config_class
            front_end = {field.name: field.type for field in dataclasses.fields(config_class)}.get("front_end")
            if front_end:
                found["front end"] = front_end
    return found


def fingerprints_of(trials):
    """Fingerprints that are made up: the signature is a function of the trial and of these."""
    every = [stage for trial in trials for stage in iter_required_trials(trial)]
    splits = {name for trial in every for name in (*trial.train, trial.validation, trial.test)}
    configs = {config for trial in every for config in (trial.audio, trial.text)}
    return Fingerprints(
        splits={name: f"contents of {name}" for name in splits},
        exclusions={trial.train: "no exclusions" for trial in every},
        paraphrases={name: f"paraphrases of {name}" for name in splits},
        weights={config: f"weights of {encoders.format_label(config)}" for config in configs},
    )


def golden():
    """What golden_signatures.json holds."""
    found = {}
    for name, space in sorted(spaces.list_spaces().items()):
        trials = spaces.check_trials(space(SPLITS, "float32"))
        fingerprints = fingerprints_of(trials)
        for trial in trials:
            for stage in iter_required_trials(trial):
                key, signature = f"{name}: {stage.name}, {stage.schedule.epochs} epochs", sign(stage, fingerprints)
                assert found.setdefault(key, signature) == signature, f"two trials are called {key!r}"
    return {
        "training_version": TRAINING_VERSION,
        "defaults": {name: defaults(config_class) for name, config_class in config_classes().items()},
        "signatures": dict(sorted(found.items())),
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(golden(), indent=1) + "\n")
