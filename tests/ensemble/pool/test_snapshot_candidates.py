"""Snapshots as candidates: which ones a pool has, and nested cross-validation that treats a training as one trial."""

from dataclasses import replace

import numpy as np
import pytest

from data.errors import UserError
from data.splits import Splits
from ensemble.pool.candidates import Candidate, find_candidates
from ensemble.selection import cross_validation, epoch_choice, greedy
from ensemble.selection.greedy import SelectionConfig
from ensemble.selection.pool_choice import PoolChooser
from ensemble.selection.reference import select_greedily
from sweeps import spaces
from trainables import retrieval
from trainables.records.embeddings import BANK_FILE, EPOCHS_FOLDER, VALIDATION_FILE, Embeddings, epoch_file_name
from trainables.schedule import Schedule
from trainables.signature import UNRELATED, Relations
from trainables.trial import Trial

SPLITS = Splits("made/train", "made/validation", "made/test", ("made/train",))
CLIPS, CAPTIONS, SIZE = 15, 3, 8
QUERIES = CLIPS * CAPTIONS
FOLDS = 4
CYCLES, EPOCHS = 2, 6


@pytest.fixture
def ledger(make_memory_ledger, tmp_path):
    return make_memory_ledger(tmp_path)


@pytest.fixture
def cyclic() -> Trial:
    """Two cycles of three epochs."""
    trial = spaces.from_scratch(SPLITS, "float32", "passt:tiny", 1e-3, epochs=EPOCHS)
    return replace(trial, schedule=Schedule(1e-3, 1e-5, EPOCHS, cycles=CYCLES))


def make_embeddings(rng, signature, noise, base):
    vectors = [one + noise * rng.normal(size=one.shape) for one in (base, np.repeat(base, CAPTIONS, axis=0))]
    audio, text = ((one / np.linalg.norm(one, axis=1, keepdims=True)).astype(np.float32) for one in vectors)
    ids = [f"made/validation/{clip:02}.wav" for clip in range(CLIPS)]
    queries = [f"query {number}" for number in range(QUERIES)]
    relevant = [[ids[number // CAPTIONS]] for number in range(QUERIES)]
    return Embeddings(signature, "made/validation", "f", ids, queries, relevant, audio, text)


def per_query(embeddings):
    relevant = retrieval.build_relevance(embeddings.relevant_clip_ids, embeddings.clip_ids)
    return retrieval.find_metric("map10")(retrieval.compute_ranks(embeddings.compute_scores(), relevant), relevant)


class Training:
    """A finished training in a ledger, with random embeddings after each epoch, and its snapshots."""

    def __init__(self, ledger, trial, number, kept=False, snapshot_epochs=(3, 6), noise=1.6):
        rng = np.random.default_rng(number)
        base = np.random.default_rng(99).normal(size=(CLIPS, SIZE))
        self.ledger, self.trial, self.signature = ledger, trial, f"{16 * number:016x}"
        self.kept = kept
        self.epochs = [make_embeddings(rng, self.signature, noise, base) for _ in range(trial.epochs)]
        curve = [float(per_query(one).mean()) for one in self.epochs]
        self.best = int(np.argmax(curve)) + 1
        self.run_id = self.finish(trial, self.signature, self.best, curve)
        self.snapshots = {}
        for epoch in snapshot_epochs:
            signature = f"{16 * number + epoch:016x}"
            snapshot = replace(trial, snapshot_epoch=epoch)
            self.finish(snapshot, signature, epoch, curve[:epoch], Relations(snapshot_of=self.signature))
            self.snapshots[epoch] = signature
        for epoch, embeddings in enumerate(self.epochs, start=1):
            if kept:
                ledger.keep_embeddings(self.run_id, f"{EPOCHS_FOLDER}/{epoch_file_name(epoch)}", embeddings)

    def finish(self, trial, signature, best, curve, relations=UNRELATED):
        run_id = self.ledger.claim(trial, signature, None, relations)
        for epoch, value in enumerate(curve, start=1):
            self.ledger.log_metrics(run_id, {"map10": value, "best_epoch": float(best)}, epoch)
        self.ledger.keep_embeddings(run_id, VALIDATION_FILE, self.epochs[best - 1])
        self.ledger.finish(run_id)
        return run_id

    def list_models(self, include_Q):
        """By hand: the distinct models that the training contributes if these queries are the validation split, by the
        signature under which each is stored.
        """
        stored = range(1, len(self.epochs) + 1) if self.kept else sorted({self.best, *self.snapshots})
        values = {epoch: np.mean([per_query(self.epochs[epoch - 1])[q] for q in np.flatnonzero(include_Q)])
                  for epoch in stored}  # fmt: skip
        best = max(stored, key=lambda epoch: (values[epoch], -epoch))
        is_own = self.kept or best == self.best
        models = {self.signature if is_own else self.snapshots[best]: self.epochs[best - 1]}
        for epoch, signature in self.snapshots.items():
            if epoch != best:
                models[signature] = self.epochs[epoch - 1]
        return best, models


def sweep_of(ledger, *trainings):
    ledger.start_sweep("made", [training.signature for training in trainings], {})
    return [ledger.find_sweep("made")]


def test_each_cycle_is_a_candidate_and_no_model_is_there_twice(ledger, cyclic):
    ends = set()
    for number in range(1, 9):
        training = Training(ledger, replace(cyclic, seed=number), number)
        candidates = find_candidates(ledger, sweep_of(ledger, training))
        epochs = {candidate.run.snapshot_epoch or training.best for candidate in candidates}
        assert epochs == {training.best, 3, 6}
        assert len(candidates) == len(epochs)
        assert training.signature in {candidate.signature for candidate in candidates}
        assert [candidate.key for candidate in candidates] == sorted(candidate.key for candidate in candidates)
        names = {candidate.run.snapshot_epoch: candidate.name for candidate in candidates}
        assert all(f" epoch {epoch} seed" in name for epoch, name in names.items() if epoch)
        ends.add(len(epochs))
    assert ends == {2, 3}, "in some trainings the best epoch should end a cycle, in others not"


def test_a_filter_holds_for_snapshots_as_well(ledger, cyclic):
    trainings = [Training(ledger, replace(cyclic, seed=number), number) for number in (1, 2, 3)]
    sweeps = sweep_of(ledger, *trainings)
    by_seed = find_candidates(ledger, sweeps, ["seed=2"])
    assert {candidate.run.settings["seed"] for candidate in by_seed} == {"2"}
    assert trainings[1].signature in {candidate.signature for candidate in by_seed}
    last = find_candidates(ledger, sweeps, ["snapshot_epoch=6"])
    assert {candidate.signature for candidate in last} == {training.snapshots[6] for training in trainings}
    with pytest.raises(UserError, match="no trial matches; its values are: , 3, 6"):
        find_candidates(ledger, sweeps, ["snapshot_epoch=5"])


def test_snapshots_of_a_single_cycle_or_after_other_epochs_are_candidates_only_if_a_sweep_lists_them(ledger, cyclic):
    training = Training(ledger, cyclic, 1, snapshot_epochs=(3, 5, 6))
    once = Training(ledger, replace(cyclic, schedule=replace(cyclic.schedule, cycles=1)), 2, snapshot_epochs=(4,))
    listed = {candidate.signature for candidate in find_candidates(ledger, sweep_of(ledger, training, once))}
    assert not {training.snapshots[5], once.snapshots[4]} & listed
    ledger.start_sweep("listed", [training.signature, training.snapshots[5], once.snapshots[4]], {})
    listed = {candidate.signature for candidate in find_candidates(ledger, [ledger.find_sweep("listed")])}
    assert {once.snapshots[4], training.signature} <= listed
    assert (training.snapshots[5] in listed) == (training.best != 5)
    ledger.start_sweep("alone", [training.snapshots[training.best if training.best in training.snapshots else 3]], {})
    assert len(find_candidates(ledger, [ledger.find_sweep("alone")])) == 1


def test_snapshots_of_an_unfinished_training_are_no_candidates(ledger, cyclic):
    done, other = (Training(ledger, replace(cyclic, seed=number), number) for number in (1, 2))
    ledger.mark_ended(other.run_id, "KILLED")
    listed = find_candidates(ledger, sweep_of(ledger, done, other))
    assert {candidate.run.settings["seed"] for candidate in listed} == {"1"}


def evaluate_by_hand(trainings, fold_Q, config):
    """Nested cross-validation from its definition: for each fold, the pool that there would be if the validation split
    had the other folds' queries alone, selected from with them alone. Also the best epochs in each fold.
    """
    relevant = retrieval.build_relevance(trainings[0].epochs[0].relevant_clip_ids, trainings[0].epochs[0].clip_ids)
    result_Q, chosen = np.empty(QUERIES), []
    for fold in range(FOLDS):
        include_Q = fold_Q != fold
        models, epochs = {}, []
        for training in trainings:
            best, own = training.list_models(include_Q)
            models |= own
            epochs.append(best)
        names = sorted(models)
        scores = [models[name].compute_scores().astype(np.float64) for name in names]
        part = retrieval.build_relevance([models[names[0]].relevant_clip_ids[q] for q in np.flatnonzero(include_Q)],
                                         models[names[0]].clip_ids)  # fmt: skip

        def metric(mean_QA, part=part):
            return round(retrieval.compute_metrics(np.round(mean_QA, 12), part, ["map10"])["map10"], 12)

        if config.method == "all":
            weights = np.ones(len(names))
        else:
            weights = select_greedily([one[include_Q] for one in scores], metric, names, config.max_size).weights
        fused_QA = sum(weight * one for weight, one in zip(weights, scores, strict=True))
        values_Q = retrieval.find_metric("map10")(retrieval.compute_ranks(fused_QA, relevant), relevant)
        result_Q[~include_Q] = values_Q[~include_Q]
        chosen.append(epochs)
    return result_Q, chosen


@pytest.mark.parametrize("method", ["greedy", "all"])
@pytest.mark.parametrize("kept", [False, True])
def test_nested_cross_validation_builds_the_candidates_of_a_training_anew_in_each_fold(ledger, cyclic, kept, method):
    config, cases = SelectionConfig(max_size=5) if method == "greedy" else SelectionConfig("all"), set()
    for first in range(1, 22, 3):
        trainings = [Training(ledger, replace(cyclic, seed=n), n, kept) for n in range(first, first + 3)]
        candidates = find_candidates(ledger, sweep_of(ledger, *trainings))
        chooser = PoolChooser(ledger, candidates, "map10", "mean", "t2a", config)
        pruned, temperature = chooser.choose()
        pool_for, redoes_epochs = chooser.make_pool_for(chooser.read_scores(temperature))
        assert redoes_epochs == kept
        fold_Q = cross_validation.assign_folds(pruned.group_Q, FOLDS)
        result = cross_validation.cross_validate(pool_for, config, fold_Q)
        expected_Q, chosen = evaluate_by_hand(trainings, fold_Q, config)
        np.testing.assert_allclose(result.ensemble_Q, expected_Q, atol=1e-9)
        for epochs in chosen:
            cases |= {(training.best in (3, 6), best in (3, 6), best == training.best)
                      for training, best in zip(trainings, epochs, strict=True)}  # fmt: skip
    assert {(True, True, True), (False, False, True), (False, True, False)} <= cases
    assert ((True, False, False) in cases) == kept, "only kept embeddings have another epoch than a cycle's last"


@pytest.mark.parametrize(("fusion", "direction"), [("rank", "t2a"), ("mean", "a2t"), ("inverted-softmax", "t2a")])
def test_candidates_of_the_folds_are_the_same_with_other_fusions_and_directions(ledger, cyclic, fusion, direction):
    """By hand: the pool of the trials with these models, with the temperature that is best on the same queries."""
    trainings = [Training(ledger, replace(cyclic, seed=number), number) for number in range(1, 7)]
    rng, config = np.random.default_rng(0), SelectionConfig(max_size=3)
    for run in list(ledger.trials.values()):
        bank = make_embeddings(rng, run.signature, 1.0, rng.normal(size=(CLIPS, SIZE)))
        ledger.keep_embeddings(run.run_id, BANK_FILE, replace(bank, clip_ids=[], audio_AD=bank.audio_AD[:0]))
    candidates = find_candidates(ledger, sweep_of(ledger, *trainings))
    chooser = PoolChooser(ledger, candidates, "map10", fusion, direction, config)
    validation = chooser.read_scores(chooser.choose()[1])
    pool_for, _ = chooser.make_pool_for(validation)
    fold_Q = cross_validation.assign_folds(validation.relevance.group_Q, FOLDS)
    sizes = set()
    for fold in range(FOLDS):
        include_Q = fold_Q != fold
        captions_Q = include_Q if direction == "t2a" else np.repeat(include_Q, CAPTIONS)
        names = sorted(name for training in trainings for name in training.list_models(captions_Q)[1])
        runs = [ledger.find_finished_trial(name) for name in names]
        by_hand = [Candidate(run.name, run.signature, run) for run in runs]
        expected = PoolChooser(ledger, by_hand, "map10", fusion, direction, config).choose(include_Q)[0]
        pruned = pool_for(include_Q)
        assert list(pruned.names) == names
        np.testing.assert_array_equal(pruned.single_scores, expected.single_scores)
        sizes.add(len(names))
    assert sizes - {len(candidates)}, "in some fold, the number of candidates should differ"


def test_the_pool_of_all_queries_is_the_one_that_is_selected_from(ledger, cyclic):
    """With all queries in the mask, the candidates of the folds are those of the selection."""
    for number in range(1, 7):
        training = Training(ledger, replace(cyclic, seed=number), number, kept=bool(number % 2))
        candidates = find_candidates(ledger, sweep_of(ledger, training))
        epochs = epoch_choice.load_epoch_scores(ledger, candidates)
        entries = epoch_choice.list_candidates(candidates, epochs, np.ones(QUERIES, bool))
        assert [candidate for candidate, _ in entries] == candidates
        chooser = PoolChooser(ledger, candidates, "map10", "mean", "t2a", SelectionConfig())
        pool_for, _ = chooser.make_pool_for(chooser.read_scores(None))
        whole, again = chooser.choose()[0], pool_for(np.ones(QUERIES, bool))
        assert again.names == whole.names
        assert greedy.select(again, SelectionConfig()) == greedy.select(whole, SelectionConfig())


def test_the_epoch_of_a_snapshot_is_never_chosen_again(ledger, cyclic):
    """Not even if a sweep trained it as a trial of its own, with the embeddings of all its epochs."""
    training = Training(ledger, cyclic, 1, snapshot_epochs=())
    snapshot = Training(ledger, replace(cyclic, snapshot_epoch=4), 2, kept=True, snapshot_epochs=())
    candidates = find_candidates(ledger, sweep_of(ledger, snapshot))
    assert epoch_choice.load_epoch_scores(ledger, candidates) == {}
    assert epoch_choice.repeats_all_choices(candidates, {})
    both = find_candidates(ledger, sweep_of(ledger, snapshot, training))
    assert not epoch_choice.repeats_all_choices(both, {})
