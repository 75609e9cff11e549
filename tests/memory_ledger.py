"""A ledger in memory, for tests that are not about MLflow; tests/trainables/records/test_ledger.py compares both."""

import contextlib
import itertools
import shutil
from dataclasses import replace

from data.errors import UserError
from trainables import trial as trials
from trainables.records.embeddings import EPOCHS_FOLDER, epoch_file_name
from trainables.records.ledger import CURVES, EventRun, Ledger, MissingArtifactError, Sweep, TrialRun
from trainables.records.settings import flatten_settings
from trainables.signature import UNRELATED


class MemoryLedger(Ledger):
    """Keeps trials, sweeps and events in dictionaries, and the files of events in a folder."""

    tracking_uri = "memory:"

    def __init__(self, folder):
        self.folder = folder
        self.ids = (f"{number:032x}" for number in itertools.count())
        self.trials, self.configs, self.kept, self.logged = {}, {}, {}, {}
        self.sweeps, self.kinds, self.recorded = {}, {}, {}

    def log_metrics(self, run_id, metrics, epoch):
        """Log metrics of a trial under an epoch, as a training does."""
        for name, value in metrics.items():
            self.logged.setdefault(run_id, {}).setdefault(name, {})[epoch] = value
        run = self.trials[run_id]
        self.trials[run_id] = replace(run, metrics=run.metrics | metrics)

    def keep_embeddings(self, run_id, file, embeddings):
        """Keep a trial's embeddings of a split."""
        self.kept[run_id, file] = embeddings

    def iter_trials(self):
        return reversed(list(self.trials.values()))

    def iter_running_trials(self):
        return (run for run in self.iter_trials() if run.status == "RUNNING")

    def find_trial(self, signature):
        found = [run for run in self.iter_trials() if run.signature == signature]
        return next((run for run in found if run.status == "FINISHED"), found[0] if found else None)

    def find_signature(self, run_id):
        return self.trials[run_id].signature if run_id in self.trials else None

    def find_related(self, relation, signature):
        runs = [run for run in self.trials.values() if signature in (getattr(run.relations, relation) or ())
                or signature == getattr(run.relations, relation)]  # fmt: skip
        return sorted((run for run in runs if run.status == "FINISHED"), key=lambda run: run.signature)

    def claim(self, trial, signature, sweep_run_id, relations=UNRELATED):
        run = self.find_trial(signature)
        if run:
            self.trials[run.run_id] = replace(run, status="RUNNING")
            return run.run_id
        run_id, config = next(self.ids), trials.to_json(trial)
        settings = {name: str(value) for name, value in flatten_settings(config)}
        self.trials[run_id] = TrialRun(run_id, trial.name, signature, "RUNNING", settings, relations=relations)
        self.configs[run_id] = config
        return run_id

    def finish(self, run_id):
        if run_id in self.trials:
            self.trials[run_id] = replace(self.trials[run_id], status="FINISHED")

    def mark_ended(self, run_id, status):
        if run_id in self.trials:
            self.trials[run_id] = replace(self.trials[run_id], status=status)

    def load_best_metrics(self, run):
        best = int(run.metrics["best_epoch"])
        logged = self.logged[run.run_id]
        return {name: values[best] for name, values in logged.items() if best in values} | {"epoch": float(best)}

    def load_curves(self, run, names=CURVES):
        return {name: dict(self.logged.get(run.run_id, {}).get(name, {})) for name in names}

    def load_embeddings(self, run, file):
        if run.is_trained_on_all_splits:
            raise UserError(f"{run.name!r} was trained on all splits: there are no figures of it")
        if (run.run_id, file) not in self.kept:
            raise MissingArtifactError(file, run.run_id)
        return self.kept[run.run_id, file]

    def list_epochs(self, run):
        names = [f"{EPOCHS_FOLDER}/{epoch_file_name(epoch)}" for epoch in sorted(self.load_curves(run)["map10"])]
        return names if all((run.run_id, name) in self.kept for name in names) else []

    def load_config(self, run):
        if run.run_id not in self.configs:
            raise MissingArtifactError("trial.json", run.run_id)
        return self.configs[run.run_id]

    def start_sweep(self, name, signatures, description):
        run_id = self.sweeps[name].run_id if name in self.sweeps else next(self.ids)
        self.sweeps[name] = Sweep(run_id, name, list(signatures), dict(description))
        return run_id

    def find_sweep(self, name=None):
        names = self.list_sweep_names()
        if not names:
            raise UserError("memory: holds no sweep")
        if name not in (None, *names):
            raise UserError(f"no sweep is named {name!r}; known: {', '.join(names)}")
        return self.sweeps[name or names[0]]

    def list_sweep_names(self):
        return list(self.sweeps)[::-1]

    def iter_events(self, kind, test_fingerprint=None):
        found = [run for run in reversed(self.recorded.values()) if self.kinds[run.run_id] == kind]
        return (run for run in found if test_fingerprint in (None, run.test_fingerprint))

    def log_event(self, event):
        run_id, last = next(self.ids), {}
        for key, value, _ in event.metrics:
            last[key] = value
        self.kinds[run_id] = event.kind
        settings = dict(event.settings)
        self.recorded[run_id] = EventRun(
            run_id, event.name, event.sweep_run_id, event.test_fingerprint, last, settings, run_id
        )
        (self.folder / run_id).mkdir(parents=True)
        for file in event.files:
            shutil.copy(file, self.folder / run_id)

    @contextlib.contextmanager
    def open_event_file(self, run, name):
        path = self.folder / run.run_id / name
        if not path.exists():
            raise MissingArtifactError(name, run.run_id)
        yield path
