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

from rich.live import Live
from rich.text import Text

from data.errors import UserError, parse_positive_int
from data.runtime.command_line import command
from data.runtime.console import PlainConsole
from data.runtime.options import Command, changed_options, group, option, run_command
from data.splits import SplitOptions, Splits
from data.store.storage import Store
from trainables import encoders, recipes
from trainables.encoders import dual_models, list_families
from trainables.execution.resources import ComputeOptions, allocate
from trainables.execution.session import RunContext, TrainingJob
from trainables.precision import fastest_precision
from trainables.records import lease as leases
from trainables.records.lease import Heartbeat, Holder
from trainables.records.ledger import Ledger
from trainables.records.mlflow_ledger import LedgerOptions
from trainables.records.mlflow_log import STEP, RunLog
from trainables.records.timing import Metrics
from trainables.retrieval import METRICS
from trainables.schedule import UNTRAINED
from trainables.signature import compute_signature
from trainables.trial import RATE_SETTINGS, Precision, Trial

logger = logging.getLogger("chorale.pretrain")

POLL_EVERY_S = 2.0
PRINT_EVERY_S = 10.0
"""Interval in seconds between two lines of progress on outputs that are not a terminal."""


def parse_epochs(text: str) -> int:
    """Parse a number of epochs, for argparse: 0 or more. Raises argparse.ArgumentTypeError for any other text."""
    return 0 if text == "0" else parse_positive_int(text)


TRIAL_OPTIONS = ("batch_size", "clip_norm", "seed", "frozen_audio", "frozen_text", *RATE_SETTINGS)
SCHEDULE_OPTIONS = ("epochs", "peak_rate", "final_rate")
"""Names of the options that are fields of a trial, and of its schedule."""


@dataclass(frozen=True, kw_only=True)
class TrialOptions:
    """Command-line options that define the trial to train."""

    recipe: str = option(f"training settings: {', '.join(recipes.list_recipes())}", "small")
    audio: str = option(f"audio encoder as family:variant; families: {', '.join(list_families('audio'))}", "cnn:small5")
    text: str = option(
        f"text encoder as family:variant or huggingface:FOLDER; families: {', '.join(list_families('text'))}",
        "transformer:small",
    )
    init: str | None = option("start from a dual encoder, in place of --audio and --text", None, metavar="clap:MODEL")
    epochs: int | None = option("number of epochs (default, as below: the recipe's)", None, type=parse_epochs)
    peak_rate: float | None = option("peak learning rate", None)
    final_rate: float | None = option("final learning rate", None)
    batch_size: int | None = option("pairs per batch, over all workers", None, type=parse_positive_int)
    clip_norm: float | None = option("maximum norm of the gradients (default: no clipping)", None)
    precision: Precision | None = option(
        "float32 or bfloat16 (default: bfloat16 if the hardware has it)", None, metavar="P"
    )
    seed: int | None = option("seed of initial weights, batches and crops", None)
    frozen_audio: bool | None = option("freeze the audio encoder", None)
    frozen_text: bool | None = option("freeze the text encoder", None)
    audio_rate_share: float | None = option("share of the learning rates that the audio encoder has", None)
    text_rate_share: float | None = option("share of the learning rates that the text encoder has", None)
    layer_decay: float | None = option("factor from each block's rate to that of the block before", None)
    weights: Path | None = option("folder of published checkpoints, for machines without internet", None)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Command-line options of a pretraining."""

    splits: SplitOptions = group("data")
    ledger: LedgerOptions = group("results")
    trial: TrialOptions = group("model and training")
    compute: ComputeOptions = group("compute")


class TrainingProgressLine:
    """Context manager that shows the progress of a training, read from MLflow, in one line. On a terminal the line is
    updated in place; elsewhere it is logged at most every PRINT_EVERY_S seconds.
    """

    def __init__(self, tracking_uri: str, run_id: str, epochs: int) -> None:
        self.tracking_uri, self.run_id, self.epochs = tracking_uri, run_id, epochs
        self.text = "starting workers"
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.poll, daemon=True)
        console = PlainConsole(stderr=True)
        self.live = Live(console=console, get_renderable=lambda: Text(self.text), transient=True)

    def __enter__(self) -> "TrainingProgressLine":
        if self.live.console.is_terminal:
            self.live.start()
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        self.live.stop()

    def poll(self) -> None:
        """Read the latest metrics from MLflow every POLL_EVERY_S seconds and update the line, until the context manager
        exits. The method blocks, and is run in a thread.
        """
        log = RunLog(self.tracking_uri, self.run_id)
        printed, printed_at = "", time.monotonic()
        while not self.ended.wait(POLL_EVERY_S):
            metrics = log.load_last_metrics()
            if f"{STEP}epoch" in metrics:
                self.text = format_progress(metrics, self.epochs)
            if (
                not self.live.console.is_terminal
                and self.text != printed
                and time.monotonic() - printed_at >= PRINT_EVERY_S
            ):
                printed, printed_at = self.text, time.monotonic()
                logger.info(printed)


def format_progress(metrics: Mapping[str, float], epochs: int) -> str:
    """Return one line of text with a training's epoch, loss, speed, memory and best mAP@10 so far. `metrics` are the
    latest ones in MLflow, `epochs` is the maximum number of epochs.
    """
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


def build_trial(options: TrialOptions, splits: Splits) -> Trial:
    """Return the trial of the given recipe, with the settings that the command line gives in place of the recipe's.

    With 0 epochs, settings of the training are refused, since they have no effect. Raises UserError for them.
    """
    precision, changed = options.precision or fastest_precision(), changed_options(options)
    trial = recipes.find_recipe(options.recipe)(options.audio, options.text, splits, precision)
    if options.init:
        if given := sorted({"audio", "text"} & changed.keys()):
            raise UserError(f"--init takes both encoders from one model: leave out --{given[0]}")
        trial = replace(trial, **dual_models.parse_init(options.init))
    if options.epochs == 0:
        if given := [name for name in (*TRIAL_OPTIONS, *SCHEDULE_OPTIONS) if name in changed and name != "epochs"]:
            raise UserError(f"--{given[0].replace('_', '-')} has no effect with --epochs 0: leave it out")
        return replace(trial, schedule=UNTRAINED)
    trial_settings = {name: value for name, value in changed.items() if name in TRIAL_OPTIONS}
    schedule_settings = {name: value for name, value in changed.items() if name in SCHEDULE_OPTIONS}
    return replace(trial, schedule=replace(trial.schedule, **schedule_settings), **trial_settings)


def run(options: Options) -> int:
    """Pretrain the trial that the options define, wait for the end, and print its result; if the trial has already
    finished, only print the result. Return the exit status, 0. Raises UserError if another process is training the
    trial.
    """
    settings, compute = options.trial, options.compute
    recipes.find_recipe(settings.recipe)  # refuse unknown names before slow imports
    encoders.config_of_variant("audio", settings.audio)
    encoders.config_of_variant("text", settings.text)
    from data.preparation.build import prepare_if_absent
    from data.runtime.parallel import start_ray
    from trainables.execution.nodes import TRAIN_ENVIRONMENT, list_nodes

    os.environ.update(TRAIN_ENVIRONMENT)
    store, runs = Store.of(options.splits.store), options.ledger.location
    prepare_if_absent(options.splits.corpus, store)
    trial = build_trial(settings, options.splits.resolve_splits(store))
    weights = settings.weights.resolve() if settings.weights else None
    signature = compute_signature(trial, store.location, weights)
    ledger = options.ledger.create()
    if finished_run := ledger.find_finished_trial(signature):
        logger.info("%s has already finished.", trial.name)
        print_result(ledger.load_best_metrics(finished_run), signature)
        return 0
    from trainables.networks.validation import require_working_encoders

    require_working_encoders([trial], weights)
    lease = leases.acquire(runs, signature)
    if isinstance(lease, Holder):
        raise UserError(f"{trial.name} is being trained by {lease}: wait until it ends, or stop it")
    start_ray()
    cluster = list_nodes()
    whole_gpus = max(1.0, compute.gpus_per_worker or 1.0)
    workers = compute.workers or sum(int(node.gpus // whole_gpus) for node in cluster) or 1
    resources = allocate(cluster, replace(compute.request, workers=workers))
    execution = compute.execution_on(resources)
    worker_resources = (
        f"{resources.gpus_per_worker:g} GPU" if resources.gpus_per_worker else f"{resources.threads} CPU threads"
    )
    logger.info("%s, trial %s", trial.name, signature)
    logger.info("  on %s", ", ".join(trial.train))
    logger.info(
        "  %d workers with %s each, in %s, batches of %d",
        resources.workers,
        worker_resources,
        trial.precision,
        trial.batch_size,
    )
    context = RunContext(store.location, runs, ledger.tracking_uri, weights, compute.keep_epochs)
    with Heartbeat(runs, lease):
        run_id = ledger.claim(trial, signature, None)
        metrics = fit_and_mark_failure(ledger, TrainingJob(trial, lease, run_id, context, resources, execution))
        ledger.finish(run_id)
    print_result(metrics, signature)
    return 0


def fit_and_mark_failure(ledger: Ledger, work: TrainingJob) -> Metrics:
    """Train a trial with Ray Train, and return the best epoch's metrics. If training raises an error or is interrupted,
    its run is marked in the ledger as FAILED or KILLED.
    """
    from trainables.execution.ray_adapter import fit

    try:
        with TrainingProgressLine(ledger.tracking_uri, work.run_id, work.trial.epochs):
            return fit(work)
    except KeyboardInterrupt:
        ledger.mark_ended(work.run_id, "KILLED")
        logger.info("Interrupted. Re-run the same command to resume from the last checkpoint.")
        raise
    except Exception:
        if work.lease.is_held(work.site.runs):
            ledger.mark_ended(work.run_id, "FAILED")
        raise


def print_result(metrics: Metrics, signature: str) -> None:
    """Print a trial's signature and the metrics of its best epoch on the validation split, in percent."""
    scores = ", ".join(f"{name} {100 * metrics[name]:.2f}" for name in METRICS)
    PlainConsole().print_line(f"{signature}: best epoch {metrics['best_epoch']:.0f}: {scores}")


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    return run_command(argv, "pretrain.py", __doc__, Command(Options, run))


if __name__ == "__main__":
    sys.exit(main())
