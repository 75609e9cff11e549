"""What trials cost, by hand on a store of known size; and the table that says so."""

from dataclasses import replace

import pyarrow as pa
import pytest

from data.corpora import synthetic
from data.leakage.exclusions import EXCLUSIONS_FILE
from data.schema import EXCLUSIONS
from data.splits import Splits
from data.store import shard_writer, split_writer
from data.store.files import write_arrow_table
from data.store.storage import Store
from data.store.stored_split import open_split
from sweeps import spaces
from sweeps.planning.estimate import (
    END_TOKENS,
    Gpu,
    build_estimate_table,
    count_epoch_work,
    describe_estimate,
    estimate_seconds,
)
from trainables import encoders, recipes
from trainables.encoders.text import huggingface

SPLITS = Splits("synthetic/development", "synthetic/validation", "synthetic/evaluation", ("synthetic/development",))
GPU = Gpu("a GPU", tflops=100.0, used=0.5)


def write_store(folder):
    """7 clips of 12 s, five captions each."""
    for split in synthetic.read(None, config=synthetic.Config(7, 1, 1, 12.0, 12.0)):
        place = folder / split.corpus / split.name
        name = shard_writer.build_shard_name(0, split.clips, "pcm16")
        shard = shard_writer.write_shard(place / name, split.corpus, split.name, split.clips, "pcm16")
        split_writer.write_paraphrases(place, split.paraphrases)
        split_writer.write_split(place, split, "pcm16", [shard])
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def trial():
    return recipes.paper("passt:N", "huggingface:bert-base", SPLITS, "bfloat16")


def epoch_by_hand(store):
    """Pairs, and the tokens of the longest caption: a batch of 64 holds all 35."""
    captions = [caption for clip in open_split(store, SPLITS.train).captions for caption in clip]
    return len(captions), max(len(caption.split()) for caption in captions) + END_TOKENS


def test_the_cost_is_that_of_every_pairs_operations_in_every_epoch(store, trial):
    pairs, longest = epoch_by_hand(store)
    tokens = count_epoch_work(Store.of(store), trial.train, 10.0, 30.0, 64).tokens
    assert pairs == 35
    assert longest - 2 <= tokens <= longest
    segments = 2  # 12 s in segments of 10
    audio, text = encoders.module_of_config(trial.audio).flops(trial.audio), huggingface.flops(trial.text, tokens)
    expected = 16 * pairs * 3 * (segments * audio + text) / (100e12 * 0.5)
    assert estimate_seconds(trial, store, GPU) == pytest.approx(expected)
    assert audio == pytest.approx(2 * 85e6 * 284, rel=0.1)  # twice the layers' weights for each of 284 tokens


def test_what_makes_a_training_longer_costs_more(store, trial):
    cost = estimate_seconds(trial, store)
    assert estimate_seconds(replace(trial, schedule=replace(trial.schedule, epochs=32)), store) == pytest.approx(
        2 * cost
    )
    assert estimate_seconds(replace(trial, precision="float32"), store) == pytest.approx(2 * cost)
    assert estimate_seconds(trial, store, Gpu(tflops=140.0)) == pytest.approx(cost / 2)
    assert estimate_seconds(replace(trial, longest_audio_s=10.0), store) < 0.6 * cost
    assert estimate_seconds(replace(trial, text=huggingface.VARIANTS["roberta-large"]), store) > 1.05 * cost
    frozen = estimate_seconds(replace(trial, frozen_audio=True, frozen_text=True), store)
    assert frozen == pytest.approx(cost / 3 / trial.epochs)
    mixed = {"mix_probability": 0.5}
    both = replace(trial, frozen_audio=True, frozen_text=True)
    assert estimate_seconds(replace(both, **mixed), store) == pytest.approx(cost / 3)
    for augmented in ({"gain_db": 3.0}, {"filter_db": 3.0}):
        assert frozen < estimate_seconds(replace(both, **augmented), store) < cost / 3


def test_what_is_excluded_costs_nothing(trial, tmp_path):
    whole, part = write_store(tmp_path / "whole"), write_store(tmp_path / "part")
    row = {"clip_id": open_split(part, SPLITS.train).clip_ids[0], "split": SPLITS.train, "reason": "heard elsewhere"}
    write_arrow_table(part / EXCLUSIONS_FILE, pa.Table.from_pylist([row], schema=EXCLUSIONS))
    frozen = replace(trial, frozen_text=True)
    assert count_epoch_work(Store.of(part), trial.train, 10.0, 30.0, 64).pairs == 30
    assert estimate_seconds(frozen, part) == pytest.approx(estimate_seconds(frozen, whole) * 6 / 7, rel=0.02)


def test_an_encoder_of_unknown_size_is_counted_as_a_known_one_and_named(store, trial):
    unknown = replace(trial, text=huggingface.Config("some/model"))
    assert estimate_seconds(unknown, store) == estimate_seconds(trial, store)
    assert "The size of huggingface:some/model is unknown: it is counted as huggingface:bert-base" in describe_estimate(
        [{"a": unknown}], set(), store
    )
    assert "isn't known" not in describe_estimate([{"a": trial}], set(), store)


def test_every_trial_of_every_space_has_a_cost_if_it_is_trained(store):
    for name in spaces.list_spaces():
        trials = spaces.find_space(name)(SPLITS, "bfloat16")
        assert all((estimate_seconds(trial, store) > 0) == trial.is_trained for trial in trials)


def test_the_report_says_what_is_shared_what_is_finished_and_the_sum(store, trial):
    tuned = [recipes.paper_fine_tuning(trial, SPLITS, paraphrase_probability=share) for share in (0.0, 0.3, 0.5)]
    alone = recipes.baseline("cnn14:dcase2023", "huggingface:all-mpnet-base-v2", SPLITS, "bfloat16")
    stages = [{"aaaa": trial, "bbbb": alone}, dict(zip(("cccc", "dddd", "eeee"), tuned, strict=True))]
    weak = Gpu("slow one", tflops=1e-2, used=1.0)
    sheet = build_estimate_table(stages, {"aaaa"}, store, weak)
    assert [column.heading for column in sheet.columns] == [
        "trial", "stage", "pretraining", "state", "GPU hours", "signature",
    ]  # fmt: skip
    first, second, *rest = sheet.rows
    cost = f"{estimate_seconds(trial, store, weak) / 3600:.2f}"
    assert first == (trial.name, "pretraining", "for 3", "finished", cost, "aaaa")
    assert (second[0], second[3]) == (alone.name, "to run")
    assert all(row[1:3] == ("fine-tuning", "shared with 2") for row in rest)
    assert max(map(len, sheet.format_for_width(80))) <= 80
    every = [trial, alone, *tuned]
    left, total = (sum(estimate_seconds(one, store, weak) for one in some) / 3600 for some in (every[1:], every))
    text = describe_estimate(stages, {"aaaa"}, store, weak)
    assert text.startswith(f"{left:.2f} GPU hours remain, of {total:.2f} in total. ")
    assert "on one slow one, at 100% of its 0.01 TFLOPS" in text
