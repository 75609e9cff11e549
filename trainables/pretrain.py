r"""Pretrain a dual encoder with Ray Train, on any number of GPUs or CPU workers.

If the command is interrupted, re-run it to resume. Sweeps re-use a finished pretraining.

Examples:
    python trainables/pretrain.py --recipe small --audio cnn:small5 --text transformer:small
    python trainables/pretrain.py --recipe paper --audio passt:N --text huggingface:roberta-large \
        --corpus clotho --pretrain-on clotho audiocaps wavcaps --store store

Guide: docs/training.md
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from data.errors import UserError, positive
from data.runtime.command_line import command
from data.runtime.options import Command, changed_options, group, option, run_command
from data.splits import SplitOptions, Splits
from data.store.storage import Store
from trainables import encoders, recipes
from trainables.encoders import families
from trainables.execution.resources import ComputeOptions, share_out
from trainables.execution.session import Site, Work
from trainables.records import lease as leases
from trainables.records.lease import Heart, Holder
from trainables.records.ledger import Ledger
from trainables.records.mlflow_ledger import LedgerOptions
from trainables.records.mlflow_log import STEP, Log
from trainables.records.timing import Metrics
from trainables.retrieval import METRICS
from trainables.signature import compute_signature
from trainables.trial import Precision, Trial, fastest_precision

logger = logging.getLogger("chorale.pretrain")

ASK_EVERY_S = 2.0
SAY_EVERY_S = 10.0
"""Interval in seconds between two lines of progress on outputs that are not a terminal."""


SETTINGS = ("batch_size", "clip_norm", "seed", "frozen_audio", "frozen_text")
OF_SCHEDULE = ("epochs", "peak_rate", "final_rate")
"""Names of the options that are fields of a trial, and of its schedule."""


@dataclass(frozen=True, kw_only=True)
class TrialOptions:
    """Command-line options of the trial to train."""

    recipe: str = option(f"training settings: {', '.join(recipes.named())}", "small")
    audio: str = option(f"audio encoder as family:variant; families: {', '.join(families('audio'))}", "cnn:small5")
    text: str = option(f"text encoder as family:variant; families: {', '.join(families('text'))}", "transformer:small")
    epochs: int | None = option("number of epochs (default, as below: the recipe's)", None, type=positive)
    peak_rate: float | None = option("peak learning rate", None)
    final_rate: float | None = option("final learning rate", None)
    batch_size: int | None = option("pairs per batch, over all workers", None, type=positive)
    clip_norm: float | None = option("maximum norm of the gradients (default: no clipping)", None)
    precision: Precision | None = option("precision (default: bfloat16 if the hardware supports it)", None)
    seed: int | None = option("seed of initial weights, batches and crops", None)
    frozen_audio: bool | None = option("freeze the audio encoder", None)
    frozen_text: bool | None = option("freeze the text encoder", None)
    weights: Path | None = option("folder of published checkpoints, for machines without internet", None)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Command-line options of a pretraining."""

    splits: SplitOptions = group("data")
    ledger: LedgerOptions = group("results")
    trial: TrialOptions = group("model and training")
    compute: ComputeOptions = group("compute")


class ProgressLine:
    """Line that shows the progress of a training as logged in MLflow: updated on a terminal, printed now and then
    elsewhere.
    """

    def __init__(self, tracking_uri: str, run_id: str, epochs: int) -> None:
        self.tracking_uri, self.run_id, self.epochs = tracking_uri, run_id, epochs
        self.text = "starting workers"
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.follow, daemon=True)
        console = Console(stderr=True)
        self.live = Live(console=console, get_renderable=lambda: Text(self.text), transient=True)

    def __enter__(self) -> "ProgressLine":
        if self.live.console.is_terminal:
            self.live.start()
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        self.live.stop()

    def follow(self) -> None:
        """Read the latest metrics from MLflow every few seconds."""
        log = Log(self.tracking_uri, self.run_id)
        said, said_at = "", time.monotonic()
        while not self.ended.wait(ASK_EVERY_S):
            metrics = log.last_metrics()
            if f"{STEP}epoch" in metrics:
                self.text = progress(metrics, self.epochs)
            if not self.live.console.is_terminal and self.text != said and time.monotonic() - said_at >= SAY_EVERY_S:
                said, said_at = self.text, time.monotonic()
                logger.info(said)


def progress(metrics: Mapping[str, float], epochs: int) -> str:
    """Return the progress of a training as one line."""
    step = {name.removeprefix(STEP): value for name, value in metrics.items() if name.startswith(STEP)}
    best = (
        f", best mAP@10 {metrics['best_map10']:.4f} (epoch {metrics['best_epoch']:.0f})"
        if metrics.get("best_epoch")
        else ""
    )
    return (
        f"epoch {step['epoch']:.2f} of {epochs}, loss {step['loss']:.3f}, {step['step_s']:.3f} s a step, "
        f"{step['pairs_per_second']:.1f} pairs/s, {step['waiting_share']:.1%} waiting for data, "
        f"{step['memory_gb']:.1f} GB{best}"
    )


def trial_of(options: TrialOptions, chosen: Splits) -> Trial:
    """Return the recipe's trial with the settings of the command line."""
    precision = options.precision or fastest_precision()
    trial = recipes.recipe(options.recipe)(options.audio, options.text, chosen, precision)
    own, of_schedule = ({name: value for name, value in changed_options(options).items() if name in names}
                        for names in (SETTINGS, OF_SCHEDULE))  # fmt: skip
    return replace(trial, schedule=replace(trial.schedule, **of_schedule), **own)


def run(options: Options) -> int:
    """Train as the options say, and return the exit status."""
    settings, compute = options.trial, options.compute
    recipes.recipe(settings.recipe)  # refuse unknown names before slow imports
    encoders.choose("audio", settings.audio)
    encoders.choose("text", settings.text)
    from data.preparation.build import prepare_if_absent
    from data.runtime.parallel import start_ray
    from trainables.execution.nodes import TRAIN_ENVIRONMENT, nodes

    os.environ.update(TRAIN_ENVIRONMENT)
    whole, runs = Store.of(options.splits.store), options.ledger.location
    prepare_if_absent(options.splits.corpus, whole)
    trial = trial_of(settings, options.splits.find(whole))
    weights = settings.weights.resolve() if settings.weights else None
    signature = compute_signature(trial, whole.location, weights)
    ledger = options.ledger.create()
    if found := ledger.finished(signature):
        logger.info("%s has already finished.", trial.name)
        show(ledger.best_metrics(found), signature)
        return 0
    lease = leases.acquire(runs, signature)
    if isinstance(lease, Holder):
        raise UserError(f"{trial.name} is being trained by {lease}: wait until it ends, or stop it")
    start_ray()
    cluster = nodes()
    whole_gpus = max(1.0, compute.gpus_per_worker or 1.0)
    workers = compute.workers or sum(int(node.gpus // whole_gpus) for node in cluster) or 1
    resources = share_out(cluster, replace(compute.wish, workers=workers))
    execution = compute.execution(resources)
    each = f"{resources.gpus_per_worker:g} GPU" if resources.gpus_per_worker else f"{resources.threads} CPU threads"
    logger.info("%s, trial %s", trial.name, signature)
    logger.info("  on %s", ", ".join(trial.train))
    logger.info(
        "  %d workers with %s each, in %s, batches of %d", resources.workers, each, trial.precision, trial.batch_size
    )
    site = Site(whole.location, runs, ledger.tracking_uri, weights, compute.keep_epochs)
    with Heart(runs, lease):
        run_id = ledger.claim(trial, signature, None)
        metrics = fit_or_give_up(ledger, Work(trial, lease, None, run_id, site, resources, execution))
        ledger.finish(run_id)
    show(metrics, signature)
    return 0


def fit_or_give_up(ledger: Ledger, work: Work) -> Metrics:
    """Train with Ray Train, and mark the run in the ledger as failed if that raises."""
    from trainables.execution.ray_adapter import fit

    try:
        with ProgressLine(ledger.tracking_uri, work.run_id, work.trial.epochs):
            return fit(work)
    except KeyboardInterrupt:
        ledger.give_up(work.run_id, "KILLED")
        logger.info("Interrupted. Re-run the same command to resume from the last checkpoint.")
        raise
    except Exception:
        if work.lease.is_held(work.site.runs):
            ledger.give_up(work.run_id, "FAILED")
        raise


def show(metrics: Metrics, signature: str) -> None:
    """Print the metrics of the best epoch on the validation split."""
    scores = ", ".join(f"{name} {100 * metrics[name]:.2f}" for name in METRICS)
    Console(soft_wrap=True).print(f"{signature}: best epoch {metrics['best_epoch']:.0f}: {scores}", highlight=False)


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    return run_command(argv, "pretrain.py", __doc__, Command(Options, run))


if __name__ == "__main__":
    sys.exit(main())
