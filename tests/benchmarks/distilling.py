"""What teachers add to a training step: the training loop with eight teachers and without, in turns.

python tests/benchmarks/distilling.py [--rounds 5] [--teachers 8] [--audio cnn:small5] [--batch-size 64]

The store is the synthetic corpus, the student a small CNN and a small transformer, whose steps are short: the share of
the teachers is smaller for any larger student. The teachers' embeddings are random vectors of 1,024 dimensions.
"""

import argparse
import os
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from measure import machine, say, told

from data.preparation.build import prepare_if_absent
from data.splits import SplitOptions
from data.store.storage import Store
from data.store.stored_split import open_split
from trainables.recipes import small
from trainables.records.embeddings import Embeddings, write_embeddings
from trainables.schedule import Schedule
from trainables.training.distillation import list_texts
from trainables.training.train import Callbacks, TrainingStart, train
from trainables.trial import Teacher, Trial

EMBEDDING_SIZE = 1024


def write_teacher(path: Path, store: Store, trial: Trial, seed: int) -> Path:
    """Random unit vectors for the clips and captions of the training split."""
    split, rng = open_split(store, trial.train[0]), np.random.default_rng(seed)
    texts = list_texts(split, with_paraphrases=False)
    vectors = rng.normal(size=(len(split.clip_ids) + len(texts), EMBEDDING_SIZE)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    audio, text = np.split(vectors, [len(split.clip_ids)])
    relevant: list[list[str]] = [[] for _ in texts]
    write_embeddings(path, Embeddings("", split.name, split.fingerprint, split.clip_ids, texts, relevant, audio, text))
    return path


def time_steps(trial: Trial, store: Store, start: TrainingStart) -> list[float]:
    """Seconds of each step of an epoch but the first, which warms up."""
    steps: list[float] = []
    callbacks = Callbacks(lambda *_: None, lambda step: steps.append(step.duration_s))
    train(trial, store.location, callbacks, start)
    return steps[1:]


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="in which both are timed once")
    parser.add_argument("--teachers", type=int, default=8)
    parser.add_argument("--audio", default="cnn:small5")
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()
    say(machine())
    with tempfile.TemporaryDirectory() as folder:
        store = Store.of(Path(folder) / "store")
        prepare_if_absent("synthetic", store)
        splits = SplitOptions(store=str(store)).resolve_splits(store)
        schedule = Schedule(1e-3, 1e-3, epochs=1, warmup_epochs=0, final_epochs=0)
        hard = small(arguments.audio, "transformer:small", splits, "float32")
        hard = replace(hard, schedule=schedule, batch_size=arguments.batch_size, final_epoch=1)  # without validation
        paths = [
            write_teacher(Path(folder) / f"{number}.arrow", store, hard, number) for number in range(arguments.teachers)
        ]
        student = replace(hard, teachers=tuple(Teacher(files=(str(path),)) for path in paths), hard_share=0.5)
        taught = TrainingStart(teachers=tuple((path,) for path in paths))
        times: dict[str, list[float]] = {"without": [], "with": []}
        for _ in range(arguments.rounds):
            times["without"] += time_steps(hard, store, TrainingStart())
            times["with"] += time_steps(student, store, taught)
    without_s, with_s = (statistics.median(times[name]) for name in ("without", "with"))
    say(f"{len(times['with'])} steps of {arguments.batch_size} pairs, {arguments.teachers} teachers")
    told(f"a step, with ({1000 * with_s:.1f} ms) / without teachers ({1000 * without_s:.1f} ms)",
         with_s / without_s, "times", most=1.03)  # fmt: skip


if __name__ == "__main__":
    main()
