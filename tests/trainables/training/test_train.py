"""The loop: it learns, goes on where it was, returns the best epoch, and writes what it says."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.captions import normalise
from data.errors import UserError
from data.loading.loader import load_epoch
from data.loading.pairs import ClipCaptionDataset
from data.loading.sampler import order_epoch
from data.schema import SAMPLE_RATE_HZ
from data.store.stored_split import open_split
from data.waveform import MIN_LAST_SEGMENT_S
from trainables import trial as trials
from trainables.encoders.audio import cnn14
from trainables.networks import dual_encoder
from trainables.records import checkpoint
from trainables.records.checkpoint import (
    BEST_FILE,
    MODEL_FILE,
    OPTIMIZER_FILE,
    PROGRESS_FILE,
    TRIAL_FILE,
    Snapshot,
    Weights,
    load_model,
)
from trainables.records.timing import Metrics
from trainables.retrieval import METRICS
from trainables.schedule import Plateau, Schedule
from trainables.training.compute import DEFAULT, Execution
from trainables.training.embedding import embed_split
from trainables.training.train import Callbacks, TrainingStart, seed_step, train
from trainables.trial import Trial

STILL = Schedule(peak_rate=0.0, final_rate=0.0, epochs=1, warmup_epochs=0, final_epochs=0)
"""Leaves weights where they are."""


class Run:
    """A training, the metrics of each epoch, and its checkpoint in `folder`/1, `folder`/2 and so on."""

    def __init__(self, trial: Trial, store: Path, folder: Path, execution: Execution = DEFAULT, **start) -> None:
        self.folder, self.epochs, self.steps = folder, [], []
        callbacks = Callbacks(self.report, self.steps.append)
        self.network = train(trial, store, callbacks, TrainingStart(**start), execution=execution)

    def report(self, metrics: Metrics, snapshot: Snapshot) -> None:
        """Checkpoints in the midst of an epoch go to `folder`/step1, `folder`/step2 and so on."""
        if metrics:
            self.epochs.append(metrics)
        name = str(int(metrics["epoch"])) if metrics else f"step{snapshot.progress.steps_done}"
        snapshot.write(self.folder / name)

    def weights(self, epoch: int) -> Weights:
        return load_file(self.folder / str(epoch) / MODEL_FILE)


@pytest.fixture(scope="module")
def long_trial(trial) -> Trial:
    return replace(trial, schedule=replace(trial.schedule, epochs=4))


@pytest.fixture(scope="module")
def run(long_trial, store, tmp_path_factory) -> Run:
    """Four epochs without an interruption."""
    return Run(long_trial, store, tmp_path_factory.mktemp("run"))


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def load_progress_without_times(folder):
    progress = checkpoint.load_progress(folder)
    return replace(progress, history=tuple(without_times(metrics) for metrics in progress.history))


def without_times(metrics: Metrics) -> Metrics:
    times = {"step_s", "training_s", "validation_s", "pairs_per_second", "waiting_share", "memory_gb"}
    return {name: value for name, value in metrics.items() if name not in times}


def test_pairs_without_paraphrases_are_counted(run):
    assert {metrics["pairs_without_paraphrases"] for metrics in run.epochs} == {0.0}


def test_the_loss_falls(run):
    losses = [metrics["train_loss"] for metrics in run.epochs]
    assert losses[-1] < losses[1] < losses[0]
    assert min(metrics["validation_loss"] for metrics in run.epochs[1:]) < run.epochs[0]["validation_loss"]


def test_the_loss_of_pairs_that_are_trained_on_falls_a_lot(trial, store, tmp_path):
    """Without dropout and paraphrases, when the validation split itself is trained on."""
    easy = replace(
        trial,
        audio=replace(trial.audio, dropout=0.0),
        text=replace(trial.text, dropout=0.0),
        train=("synthetic/validation",),
        schedule=replace(trial.schedule, epochs=15),
        batch_size=30,
        paraphrase_probability=0.0,
    )
    epochs = Run(easy, store, tmp_path).epochs
    assert epochs[-1]["map10"] > 1.3 * epochs[0]["map10"]
    assert epochs[-1]["train_loss"] < 0.85 * epochs[0]["train_loss"]


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_resumed_training_ends_bit_for_bit_as_if_uninterrupted(run, long_trial, store, tmp_path, epoch):
    resumed = Run(long_trial, store, tmp_path, resume_from=run.folder / str(epoch))
    assert [without_times(metrics) for metrics in resumed.epochs] == [without_times(m) for m in run.epochs[epoch:]]
    for file in (MODEL_FILE, OPTIMIZER_FILE):
        assert equal(load_file(tmp_path / "4" / file), load_file(run.folder / "4" / file))
    assert load_progress_without_times(tmp_path / "4") == load_progress_without_times(run.folder / "4")
    assert equal(resumed.network.state_dict(), run.network.state_dict())


@pytest.fixture(scope="module")
def stepwise(trial, store, tmp_path_factory) -> Run:
    """Two epochs of nine steps, with a checkpoint after each step."""
    return Run(trial, store, tmp_path_factory.mktemp("stepwise"), execution=Execution(checkpoint_every_s=0))


@pytest.mark.parametrize("steps", [1, 8, 10, 14])
def test_a_training_goes_on_after_any_step_bit_for_bit(stepwise, trial, store, tmp_path, steps):
    resumed = Run(trial, store, tmp_path, resume_from=stepwise.folder / f"step{steps}")
    assert [without_times(metrics) for metrics in resumed.epochs] == [
        without_times(metrics) for metrics in stepwise.epochs[steps // 9 :]
    ]
    for file in (MODEL_FILE, OPTIMIZER_FILE):
        assert equal(load_file(tmp_path / "2" / file), load_file(stepwise.folder / "2" / file))
    assert equal(resumed.network.state_dict(), stepwise.network.state_dict())


def test_every_step_is_told_with_what_it_took(stepwise):
    assert [step.number for step in stepwise.steps] == list(range(1, 19))
    assert [step.num_pairs for step in stepwise.steps] == 2 * [8, 8, 8, 8, 8, 8, 8, 8, 1]
    assert [round(step.epoch * 9) for step in stepwise.steps] == list(range(1, 19))
    for step in stepwise.steps:
        assert 0 <= step.waited_s <= step.duration_s
        assert step.memory_bytes > 1e8
    mean = np.mean([step.loss for step in stepwise.steps[:9]])
    assert stepwise.epochs[0]["train_loss"] == pytest.approx(mean)
    assert {"step_s", "pairs_per_second", "waiting_share", "memory_gb"} < set(stepwise.epochs[0])


def test_a_loss_that_is_not_finite_ends_the_training_with_the_clips_of_its_batch(trial, store, tmp_path):
    steep = replace(trial, schedule=Schedule(1e30, 1e30, 2, warmup_epochs=0, final_epochs=0))
    with pytest.raises(UserError, match=r"the loss of step \d is nan: .*synthetic/development/.*\.") as raised:
        Run(steep, store, tmp_path, execution=Execution(checkpoint_every_s=0))
    kept = sorted(tmp_path.iterdir())
    assert f"step {len(kept) + 1} " in str(raised.value)
    named = set(re.findall(r"synthetic/development/[^,]+", str(raised.value)))
    assert 1 < len(named) <= 8


def test_gradients_are_clipped_only_if_wanted(trial, store, tmp_path):
    plain, far, near = (Run(replace(trial, clip_norm=norm), store, tmp_path / str(norm)) for norm in (None, 1e9, 1e-3))
    assert equal(plain.weights(2), far.weights(2))
    assert not equal(plain.weights(2), near.weights(2))
    with pytest.raises(UserError, match="clip_norm is 0"):
        replace(trial, clip_norm=0)


@pytest.fixture(scope="module")
def settling(trial) -> Trial:
    """Its rate is cut in every second epoch, as no loss is better by so much; it ends after the fifth of nine."""
    plateau = Plateau(
        3e-3, 1e-5, 9, factor=0.1, patience=1, threshold=99.0, settled_std=99.0, settled_epochs=2, first_end=5
    )
    return replace(trial, schedule=plateau, fixed_temperature=True)


@pytest.fixture(scope="module")
def settled(settling, store, tmp_path_factory) -> Run:
    """That training, with a checkpoint after each step."""
    return Run(settling, store, tmp_path_factory.mktemp("settled"), execution=Execution(checkpoint_every_s=0))


def test_on_a_plateau_the_rate_falls_and_the_training_ends_early_with_its_best_epoch(settled):
    rates = [metrics["learning_rate"] for metrics in settled.epochs]
    assert rates == pytest.approx([3e-3, 3e-3, 3e-3, 3e-4, 3e-4])
    best = max(settled.epochs, key=lambda metrics: metrics["map10"])
    assert settled.epochs[-1]["best_epoch"] == best["epoch"]
    assert equal(settled.network.state_dict(), settled.weights(int(best["epoch"])))


@pytest.mark.parametrize("name", ["1", "3", "step14", "step31"])
def test_a_training_on_a_plateau_goes_on_bit_for_bit(settled, settling, store, tmp_path, name):
    done = json.loads((settled.folder / name / PROGRESS_FILE).read_text())["epochs_done"]
    resumed = Run(settling, store, tmp_path, resume_from=settled.folder / name)
    assert [without_times(metrics) for metrics in resumed.epochs] == [
        without_times(metrics) for metrics in settled.epochs[done:]
    ]
    for file in (MODEL_FILE, OPTIMIZER_FILE):
        assert equal(load_file(tmp_path / "5" / file), load_file(settled.folder / "5" / file))
    assert load_progress_without_times(tmp_path / "5") == load_progress_without_times(settled.folder / "5")
    assert equal(resumed.network.state_dict(), settled.network.state_dict())


def test_a_training_that_ended_early_is_at_its_end_when_it_is_asked_for_again(settled, settling, store, tmp_path):
    again = Run(settling, store, tmp_path, resume_from=settled.folder / "5")
    assert not again.epochs
    assert equal(again.network.state_dict(), settled.network.state_dict())


def test_a_fixed_temperature_stays_as_it_was_also_with_micro_batches(settling, settled, store, tmp_path):
    assert [metrics["temperature"] for metrics in settled.epochs] == pytest.approx([settling.temperature] * 5)
    assert not [name for name in load_file(settled.folder / "5" / OPTIMIZER_FILE) if "temperature" in name]
    smooth = replace(
        settling,
        audio=replace(settling.audio, dropout=0.0, final_norm=False),
        text=replace(settling.text, dropout=0.0, pooling="first"),
        schedule=Schedule(1e-3, 1e-3, 1, warmup_epochs=0, final_epochs=0),
    )
    whole = Run(smooth, store, tmp_path / "whole")
    parts = Run(smooth, store, tmp_path / "parts", execution=Execution(micro_batch=3))
    assert parts.epochs[0]["train_loss"] == pytest.approx(whole.epochs[0]["train_loss"], abs=1e-4)
    assert parts.epochs[0]["temperature"] == whole.epochs[0]["temperature"]


def test_encoders_that_pool_all_outputs_have_the_same_gradients_with_micro_batches(settling, store, tmp_path):
    """The rate is so low that weights hardly change: Adam's first moments differ by the rounding of gradients alone."""
    trial = replace(
        settling,
        audio=replace(settling.audio, dropout=0.0, final_norm=True),
        text=replace(settling.text, dropout=0.0, pooling="tokens"),
        schedule=Schedule(1e-8, 1e-8, 1, warmup_epochs=0, final_epochs=0),
    )
    whole = Run(trial, store, tmp_path / "whole")
    parts = Run(trial, store, tmp_path / "parts", execution=Execution(micro_batch=3))
    assert parts.epochs[0]["train_loss"] == pytest.approx(whole.epochs[0]["train_loss"], abs=1e-5)
    moments, expected = (load_file(run.folder / "1" / OPTIMIZER_FILE) for run in (parts, whole))
    names = [name for name in expected if name.endswith("exp_avg")]
    assert len(names) > 10
    for name in names:
        largest = expected[name].abs().max().item()
        torch.testing.assert_close(moments[name], expected[name], rtol=0, atol=1e-3 * largest)


def test_a_frozen_encoder_stays_as_it_was_and_the_rest_learns_through_an_interruption(trial, store, tmp_path):
    frozen = replace(trial, frozen_text=True)
    whole = Run(frozen, store, tmp_path / "whole")
    start = Run(replace(frozen, schedule=STILL), store, tmp_path / "start").weights(1)
    changed = {name for name, tensor in whole.weights(2).items() if not torch.equal(tensor, start[name])}
    assert {name.partition(".")[0] for name in changed} == {
        "audio", "audio_projection", "text_projection", "signed_temperature"
    }  # fmt: skip
    assert not [name for name in load_file(tmp_path / "whole" / "2" / OPTIMIZER_FILE) if name.startswith("text.")]
    resumed = Run(frozen, store, tmp_path / "resumed", resume_from=tmp_path / "whole" / "1")
    assert equal(resumed.weights(2), whole.weights(2))


def test_batch_statistics_that_would_differ_between_micro_batches_are_refused(trial, store, tmp_path):
    audio = replace(cnn14.VARIANTS["audioset"], pretrained=False, channels=(2, 4), segment_s=1.0)
    micro_batches = {"execution": Execution(micro_batch=2)}
    Run(replace(trial, audio=audio, schedule=STILL), store, tmp_path / "frozen", **micro_batches)
    learned = replace(trial, audio=replace(audio, frozen_statistics=False), schedule=STILL)
    Run(learned, store, tmp_path / "whole")
    with pytest.raises(
        UserError, match="batch statistics need all pairs of a batch on one rank at a time: freeze them"
    ):
        Run(learned, store, tmp_path / "parts", **micro_batches)


def test_running_out_of_memory_says_what_to_lower(trial, store, tmp_path, monkeypatch):
    def exhausted(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(dual_encoder.DualEncoder, "embed_audio", exhausted)
    with pytest.raises(UserError, match=r"out of memory in step 1, .* of 4 pairs at a time .*: lower micro_batch, or"):
        Run(trial, store, tmp_path, execution=Execution(micro_batch=4))


@pytest.mark.parametrize("setting", [{"micro_batch": 0}, {"checkpoint_every_s": -1}])
def test_settings_of_execution_that_make_no_sense_are_refused(setting):
    with pytest.raises(UserError, match="it must be"):
        Execution(**setting)


def test_a_training_that_is_already_done_gives_its_model_back(run, long_trial, store, tmp_path):
    resumed = Run(long_trial, store, tmp_path, resume_from=run.folder / "4")
    assert resumed.epochs == []
    assert equal(resumed.network.state_dict(), run.network.state_dict())


def test_loader_processes_do_not_change_a_training(run, long_trial, store, tmp_path):
    with_workers = Run(long_trial, store, tmp_path, execution=Execution(loader_workers=1), resume_from=run.folder / "3")
    assert equal(with_workers.weights(4), run.weights(4))


def test_the_seed_changes_a_training_from_its_first_weights_on(trial, store):
    captions = ["a dog barks"]
    first, again, other = (dual_encoder.build(replace(trial, seed=seed), captions).state_dict() for seed in (0, 0, 1))
    assert equal(first, again)
    assert not torch.equal(first["audio_projection.weight"], other["audio_projection.weight"])


def test_ranks_share_one_generator_a_step_and_draw_dropout_each_for_themselves():
    shared, own = {}, {}
    for step in range(3):
        for rank in range(2):
            shared[step, rank] = seed_step(5, step, rank).initial_seed()
            own[step, rank] = torch.initial_seed()
    assert all(shared[step, 0] == shared[step, 1] for step in range(3))
    assert len(set(shared.values())) == 3
    assert len({*own.values(), *shared.values()}) == 9


@pytest.mark.parametrize("seed", [0, 1])
def test_the_best_epoch_by_map10_is_returned(trial, store, tmp_path, seed):
    one = Run(replace(trial, seed=seed, schedule=Schedule(1e-2, 1e-2, 3)), store, tmp_path)
    scores = [metrics["map10"] for metrics in one.epochs]
    best = int(np.argmax(scores)) + 1  # the first of equals
    assert equal(one.network.state_dict(), one.weights(best))
    assert [(m["best_epoch"], m["best_map10"]) for m in one.epochs][-1] == (best, max(scores))


def test_a_final_epoch_ends_a_training_on_its_schedule_without_validation(run, long_trial, store, tmp_path):
    """Also where it is on what it would be judged by."""
    ended = Run(replace(long_trial, final_epoch=2), store, tmp_path / "ended")
    assert equal(ended.network.state_dict(), run.weights(2))
    assert not {*METRICS, "validation_loss", "best_map10"} & {name for metrics in ended.epochs for name in metrics}
    assert [metrics["best_epoch"] for metrics in ended.epochs] == [1, 2]
    everything = (*long_trial.train, long_trial.validation, long_trial.test)
    on_all = replace(long_trial, train=everything, final_epoch=2, paraphrase_probability=0)
    assert on_all.training_splits == set(everything)
    whole = Run(on_all, store, tmp_path / "whole")
    assert sum(step.num_pairs for step in whole.steps) == 2 * 5 * (13 + 6 + 6)
    again = Run(on_all, store, tmp_path / "again", resume_from=whole.folder / "1")
    assert equal(again.network.state_dict(), whole.network.state_dict())


def test_a_best_epoch_from_before_an_interruption_is_kept(run, long_trial, store, tmp_path):
    """An unbeatable first epoch: the checkpoints after it carry its weights along."""
    start = tmp_path / "start"
    start.mkdir()
    for file in (run.folder / "1").iterdir():
        (start / file.name).write_bytes(file.read_bytes())
    progress = json.loads((start / PROGRESS_FILE).read_text())
    (start / PROGRESS_FILE).write_text(json.dumps(progress | {"best_epoch": 1, "best_map10": 2.0}))
    once = Run(long_trial, store, tmp_path / "once", resume_from=start)
    again = Run(long_trial, store, tmp_path / "again", resume_from=tmp_path / "once" / "3")
    for resumed in (once, again):
        assert equal(resumed.network.state_dict(), run.weights(1))
        assert not equal(resumed.weights(4), run.weights(1))
        assert equal(load_file(resumed.folder / "4" / BEST_FILE), run.weights(1))


def test_each_epochs_metrics_are_those_of_its_own_weights(run, long_trial, store):
    """And of nothing but the validation split."""
    for epoch, metrics in enumerate(run.epochs, start=1):
        embeddings = embed_split(
            load_model(run.folder / str(epoch)), long_trial, "", open_split(store, "synthetic/validation")
        )
        scores_QA = embeddings.compute_scores()
        own = scores_QA[np.arange(30), np.repeat(np.arange(6), 5)]
        rank_Q = (scores_QA >= own[:, None]).sum(axis=1)
        assert metrics["map10"] == pytest.approx((1 / rank_Q).mean())
        assert metrics["r1"] == pytest.approx((rank_Q == 1).mean())
        assert metrics["epoch"] == epoch
        assert {*METRICS, "train_loss", "validation_loss", "temperature", "learning_rate"} < set(metrics)


def test_no_metric_is_of_the_test_split(run, long_trial, store, tmp_path):
    """The same training with another test split reports the same."""
    other = Run(replace(long_trial, test="synthetic/development"), store, tmp_path, resume_from=run.folder / "3")
    assert without_times(other.epochs[0]) == without_times(run.epochs[3])


def test_a_checkpoint_holds_no_pickles(run):
    for epoch in range(1, 5):
        names = {path.name for path in (run.folder / str(epoch)).iterdir()}
        needed = {TRIAL_FILE, MODEL_FILE, OPTIMIZER_FILE, PROGRESS_FILE, "tokenizer.json"}
        assert needed <= names <= needed | {BEST_FILE}
        assert (BEST_FILE in names) == (run.epochs[epoch - 1]["best_epoch"] != epoch)


def test_a_loaded_model_gives_exactly_the_same_embeddings(run, long_trial, store, tmp_path):
    checkpoint.save_model(tmp_path, long_trial, run.network, checkpoint.copy_weights(run.network))
    assert {path.name for path in tmp_path.iterdir()} == {TRIAL_FILE, MODEL_FILE, "tokenizer.json"}
    assert trials.load_trial(tmp_path) == long_trial
    split = open_split(store, "synthetic/evaluation")
    expected, loaded = (embed_split(network, long_trial, "", split) for network in (run.network, load_model(tmp_path)))
    assert np.array_equal(loaded.audio_AD, expected.audio_AD)
    assert np.array_equal(loaded.text_QD, expected.text_QD)


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        (TRIAL_FILE, lambda path: path.write_text("{"), "trial.json isn't the config of a model .*train it again"),
        (MODEL_FILE, lambda path: path.write_bytes(b"torn"), "the model in .* can't be loaded: .*train it again"),
        (BEST_FILE, lambda path: save_file({"other": torch.zeros(1)}, path), "can't be loaded: .*Missing key"),
        (OPTIMIZER_FILE, lambda path: path.unlink(), "the checkpoint in .* can't be loaded: .*No such file"),
        (
            OPTIMIZER_FILE,
            lambda path: save_file(load_file(path) | {"other/step": torch.zeros(1)}, path),
            "'other/step'",
        ),
        (OPTIMIZER_FILE, lambda path: save_file(without_one(load_file(path)), path), "is incomplete or misshapen"),
        (
            PROGRESS_FILE,
            lambda path: path.write_text("[]"),
            "progress.json can't be loaded: .*train again from the start",
        ),
        (PROGRESS_FILE, lambda path: path.write_text('{"epochs_done": null}'), "progress.json can't be loaded"),
    ],
)
def test_a_damaged_checkpoint_is_named_with_the_remedy(run, long_trial, tmp_path, file, damage, said):
    folder = shutil.copytree(run.folder / "2", tmp_path / "2")
    damage(folder / file)
    with pytest.raises(UserError, match=said):
        trials.load_trial(folder)
        network = load_model(folder)
        optimizer = torch.optim.Adam(parameter for parameter in network.parameters() if parameter.requires_grad)
        checkpoint.load_training(folder, network, optimizer)


def without_one(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name != max(state)}


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} holds no trained model"):
        load_model(tmp_path)


def test_fine_tuning_starts_from_the_pretrained_weights_and_vocabulary(run, long_trial, store, tmp_path):
    fine_tuning = replace(long_trial, pretraining=long_trial, train=("synthetic/validation",), schedule=STILL)
    tuned = Run(fine_tuning, store, tmp_path, pretrained=run.folder / "2")
    assert equal(tuned.network.state_dict(), run.weights(2))
    vocabularies = [(folder / "tokenizer.json").read_text() for folder in (tmp_path / "1", run.folder / "2")]
    assert vocabularies[0] == vocabularies[1]


def test_without_a_pretraining_training_starts_from_the_seeds_weights(trial, store, tmp_path):
    still = Run(replace(trial, schedule=STILL), store, tmp_path)
    pairs = ClipCaptionDataset([open_split(store, name) for name in trial.train], 2.0, 4.0, 0.0, trial.seed)
    captions = [normalise(caption) for caption in pairs.iter_captions()]
    assert equal(still.network.state_dict(), dual_encoder.build(trial, captions).state_dict())


def test_an_interrupted_fine_tuning_goes_on_from_its_own_checkpoint(run, long_trial, store, tmp_path):
    fine_tuning = replace(long_trial, pretraining=long_trial, schedule=replace(long_trial.schedule, epochs=2))
    whole = Run(fine_tuning, store, tmp_path / "whole", pretrained=run.folder / "4")
    settings = {"pretrained": run.folder / "4", "resume_from": tmp_path / "whole" / "1"}
    resumed = Run(fine_tuning, store, tmp_path / "resumed", **settings)
    assert equal(resumed.weights(2), whole.weights(2))


def test_training_under_bfloat16_learns_and_keeps_float32_weights(trial, store, tmp_path):
    coarse = Run(replace(trial, precision="bfloat16"), store, tmp_path)
    assert coarse.epochs[-1]["train_loss"] < coarse.epochs[0]["train_loss"]
    assert {weights.dtype for weights in coarse.weights(2).values()} == {torch.float32}


def test_each_clips_embedding_is_the_mean_over_its_own_segments(trial, store):
    """In a batch of clips with different numbers of segments: the longer half has a fourth one."""
    split = open_split(store, "synthetic/development")
    segment_s = (np.median(split.num_samples) / SAMPLE_RATE_HZ - MIN_LAST_SEGMENT_S) / 3
    pairs = ClipCaptionDataset([split], segment_s, 30.0, 0.0, 0)
    network = dual_encoder.build(trial, ["a"]).eval()
    batch = next(load_epoch(pairs, 0, order_epoch(pairs, 0, 30)))
    assert set(batch.segments_per_clip.tolist()) == {3, 4}
    with torch.no_grad():
        embedded = network.embed_audio(batch, torch.Generator())
        features = network.audio(batch.segments, batch.mask_draws, torch.Generator())
        means = torch.stack([part.mean(dim=0) for part in features.split(batch.segments_per_clip.tolist())])
        expected = torch.nn.functional.normalize(network.audio_projection(means), dim=-1)
    torch.testing.assert_close(embedded, expected, rtol=0, atol=1e-6)
