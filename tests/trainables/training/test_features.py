"""Features: trainings end bit for bit as without them, and frozen encoders run once for all trials that share them."""

import json
import logging
import multiprocessing
import os
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tokenizers import Tokenizer

from data.errors import UserError
from data.store.stored_split import open_split
from trainables.encoders.text import huggingface
from trainables.execution.resources import Allocation
from trainables.execution.session import RunContext, TrainingJob, train_in_process
from trainables.networks import dual_encoder
from trainables.networks.audio.cnn import CnnEncoder
from trainables.networks.text.transformer import TransformerEncoder
from trainables.records import lease as leases
from trainables.records.mlflow_ledger import create_ledger
from trainables.records.run_storage import RunStorage
from trainables.signature import compute_signature
from trainables.training import features
from trainables.training.compute import Execution
from trainables.training.embedding import embed_split
from trainables.training.features import FEATURES_FILE, FeatureStorage, FrozenFeatures
from trainables.training.query_bank import embed_bank
from trainables.training.train import Callbacks, TrainingStart, train

AUDIO, TEXT = {"frozen_audio": True}, {"frozen_text": True}
TWO_SPLITS = {"train": ("synthetic/evaluation", "synthetic/development"), "paraphrase_probability": 0.0}
TIMES = ("step_s", "training_s", "validation_s", "pairs_per_second", "waiting_share", "memory_gb")


@pytest.fixture(scope="module")
def whole(trial):
    """An epoch on clips that aren't cropped, so that nothing random is in front of the audio encoder."""
    return replace(trial, longest_audio_s=6.0, schedule=replace(trial.schedule, epochs=1, final_epochs=0))


class Run:
    """A training: the metrics of its epochs without times, its checkpoint in `folder` after four steps, its model."""

    def __init__(self, trial, store, folder, execution=None, **start):
        self.metrics, self.folder = [], folder
        execution = execution or Execution(checkpoint_every_s=0)
        self.network = train(trial, store, Callbacks(self.report), TrainingStart(**start), execution=execution)

    def report(self, metrics, snapshot):
        if metrics:
            self.metrics.append({name: value for name, value in metrics.items() if name not in TIMES})
        elif snapshot and snapshot.progress.steps_done == 4:
            snapshot.write(self.folder)


def storage_in(folder):
    return FeatureStorage(RunStorage.of(folder), folder / "scratch")


def assert_same_training(one, other):
    assert one.metrics == other.metrics
    expected, got = one.network.state_dict(), other.network.state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def assert_same_embeddings(one, other):
    assert one.queries == other.queries
    np.testing.assert_array_equal(one.audio_AD, other.audio_AD)
    np.testing.assert_array_equal(one.text_QD, other.text_QD)


@pytest.mark.parametrize(
    "settings",
    [AUDIO, TEXT, AUDIO | TEXT | TWO_SPLITS, AUDIO | TEXT | {"precision": "bfloat16"}],
    ids=["audio", "text", "both, two splits", "both, bfloat16"],
)
def test_a_training_with_features_is_that_without_them_bit_for_bit(whole, store, tmp_path, settings):
    """With paraphrases, an interruption in an epoch, and embeddings of the test split and of the query bank."""
    frozen = replace(whole, **settings)
    plain = Run(frozen, store, tmp_path / "plain")
    assert plain.network.features is None
    cached = Run(frozen, store, tmp_path / "cached", features=storage_in(tmp_path / "runs"))
    assert_same_training(cached, plain)
    test, texts = open_split(store, frozen.test), open_split(store, frozen.train[0]).captions[0]
    assert_same_embeddings(*(embed_split(run.network, frozen, "", test) for run in (cached, plain)))
    assert_same_embeddings(*(embed_bank(run.network, frozen, "", [*texts, "unknown"]) for run in (cached, plain)))
    start = {"features": storage_in(tmp_path / "runs"), "resume_from": cached.folder}
    assert_same_training(Run(frozen, store, tmp_path / "resumed", Execution(loader_workers=1), **start), plain)


def test_micro_batches_have_the_features_of_their_pairs(frozen, store, computed, tmp_path):
    plain = Run(frozen, store, tmp_path / "plain", Execution(micro_batch=3))
    cached = Run(frozen, store, tmp_path / "cached", Execution(micro_batch=3), features=storage_in(computed))
    assert_same_training(cached, plain)


@pytest.fixture(scope="module")
def frozen(whole):
    return replace(whole, **AUDIO, **TEXT)


@pytest.fixture(scope="module")
def computed(frozen, store, tmp_path_factory):
    """The run storage of a training with two frozen encoders, with the features of all three splits."""
    runs = tmp_path_factory.mktemp("computed")
    network = Run(frozen, store, runs / "first", features=storage_in(runs)).network
    embed_split(network, frozen, "", open_split(store, frozen.test))
    return runs


def forbid(*_):
    raise AssertionError("a frozen encoder ran again")


def test_other_trials_with_these_encoders_run_neither_of_them_and_read_no_audio(
    frozen, store, computed, tmp_path, monkeypatch
):
    """Their store has lost its audio; they differ in batch size, temperature, projection and rate."""
    files = {path: path.stat().st_mtime_ns for path in computed.glob("features/*/*")}
    assert len(files) == 3 + 3 + 1  # clips and captions of three splits, and paraphrases
    silent = shutil.copytree(store, tmp_path / "store")
    for path in silent.rglob("*.arrow"):
        if "shard" in path.name or "clips" in path.name:
            path.write_bytes(b"")
    other = replace(
        frozen, batch_size=16, embedding_size=8, temperature=0.2, schedule=replace(frozen.schedule, peak_rate=1e-2)
    )
    plain = Run(other, store, tmp_path / "plain")
    for encoder in (CnnEncoder, TransformerEncoder):
        monkeypatch.setattr(encoder, "forward", forbid)
    cached = Run(other, silent, tmp_path / "cached", features=storage_in(computed))
    assert_same_training(cached, plain)
    embed_split(cached.network, other, "", open_split(silent, other.test))
    assert files == {path: path.stat().st_mtime_ns for path in computed.glob("features/*/*")}


def list_keys(trial, store, network=None):
    """The keys of the features of the training split."""
    network = (network or dual_encoder.build(trial, ["a dog barks"])).eval()
    source = FrozenFeatures.__new__(FrozenFeatures)
    source.network, source.trial = network, trial
    source.encoders = {kind: features.hash_encoder(network, kind) for kind in ("audio", "text")}
    split = open_split(store, trial.train[0])
    return source.make_key("audio", split, "s"), source.make_key("text", split, "captions")


def test_keys_depend_on_all_that_features_depend_on_and_on_nothing_else(frozen, store, tmp_path):
    keys = list_keys(frozen, store)
    for same in ({"batch_size": 9}, {"temperature": 0.3}, {"embedding_size": 8}, {"paraphrase_probability": 0.0}):
        assert list_keys(replace(frozen, **same), store) == keys
    for both in ({"seed": 1}, {"precision": "bfloat16"}, {"train": ("synthetic/validation",)}):
        assert not set(list_keys(replace(frozen, **both), store)) & set(keys)
    audio = replace(frozen.audio, front_end=replace(frozen.audio.front_end, mask_mels=9))  # in no weight
    network = dual_encoder.build(frozen, ["a dog barks"])
    assert [one == key for one, key in zip(list_keys(replace(frozen, audio=audio), store, network), keys, strict=True)
            ] == [False, True]  # fmt: skip
    for number, kind in enumerate(("audio", "text")):
        changed = dual_encoder.build(frozen, ["a dog barks"])
        with torch.no_grad():
            next(changed.get_submodule(kind).parameters()).view(-1)[0] += 1e-6
        found = list_keys(frozen, store, changed)
        assert (found[number] == keys[number], found[1 - number] == keys[1 - number]) == (False, True)
    words = json.loads(network.text.tokenizer.to_str())
    words["model"]["vocab"] |= {"dog": words["model"]["vocab"]["barks"], "barks": words["model"]["vocab"]["dog"]}
    network.text.tokenizer = Tokenizer.from_str(json.dumps(words))
    assert list_keys(frozen, store, network)[1] != keys[1]


@pytest.mark.parametrize("architecture", ["bert", "roberta", "mpnet"])
def test_published_encoders_have_the_same_key_for_every_seed(frozen, store, write_text_model, tmp_path, architecture):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = huggingface.Config(str(write_text_model(tmp_path / architecture, architecture, ["a dog barks"], **shape)))
    keys = [list_keys(replace(frozen, text=text, seed=seed), store) for seed in range(2)]
    assert keys[0][1] == keys[1][1]
    assert keys[0][0] != keys[1][0]


def test_a_text_models_folder_is_not_part_of_the_key_but_its_settings_are(frozen, store, write_text_model, tmp_path):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    here = write_text_model(tmp_path / "here", "bert", ["a dog barks"], **shape)
    there, other = shutil.copytree(here, tmp_path / "there"), shutil.copytree(here, tmp_path / "other")
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace('"gelu"', '"relu"'))
    keys = [
        list_keys(replace(frozen, text=huggingface.Config(str(folder))), store)[1] for folder in (here, there, other)
    ]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("change", "replaced"),
    [
        ({"longest_audio_s": 4.0}, (False, True)),
        ({"gain_db": 3.0}, (False, True)),
        ({"filter_db": 6.0}, (False, True)),
        ({"mix_probability": 0.5}, (False, False)),
    ],
    ids=["random crops", "gains", "filters", "mixtures"],
)
def test_what_is_random_in_front_of_an_encoder_is_not_replaced(frozen, store, tmp_path, change, replaced):
    random = replace(frozen, **change)
    plain = Run(random, store, tmp_path / "plain")
    cached = Run(random, store, tmp_path / "cached", features=storage_in(tmp_path / "runs"))
    source = cached.network.features
    assert (source.replaces_audio, source.replaces_text) == replaced
    assert_same_training(cached, plain)


def test_an_encoder_that_learns_has_no_features(whole, store, tmp_path):
    assert Run(whole, store, tmp_path, features=storage_in(tmp_path / "runs")).network.features is None
    assert not (tmp_path / "runs").exists()


def train_rank(rank, trial, store, folder):
    """One of two ranks, which need the features at the same time."""
    logging.basicConfig(filename=folder / f"{rank}.log", level=logging.INFO)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    run = Run(trial, store, folder / str(rank), features=storage_in(folder / "runs"))
    (folder / f"{rank}.json").write_text(json.dumps(run.metrics))
    dist.destroy_process_group()


def test_ranks_compute_features_once_and_train_as_one_rank_without_features(frozen, store, tmp_path):
    """The processes are of one command, but none takes the lease of another over."""
    torch.multiprocessing.spawn(train_rank, args=(frozen, store, tmp_path), nprocs=2)
    (got,), others = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    (expected,) = Run(frozen, store, tmp_path / "plain").metrics
    assert others == []
    for name in ("train_loss", "validation_loss", "map10", "temperature"):
        assert got[name] == pytest.approx(expected[name], rel=1e-5), name
    lines = [line for rank in range(2) for line in (tmp_path / f"{rank}.log").read_text().splitlines()]
    assert len([line for line in lines if line.endswith("are computed")]) == 5
    stored = [path for path in tmp_path.glob("runs/features/**/*") if path.is_file()]
    assert [path.name for path in stored] == [FEATURES_FILE] * 5


def test_a_thread_of_the_same_command_waits_for_features(tmp_path):
    """As trials of one sweep do, whose leases have the same command."""
    computing, may_end, computed = threading.Event(), threading.Event(), []

    def compute():
        computed.append(None)
        computing.set()
        may_end.wait(60)
        return {"vectors": torch.ones(1, 1)}

    threads = [threading.Thread(target=storage_in(tmp_path).fetch, args=("key", "features", compute)) for _ in range(2)]
    threads[0].start()
    assert computing.wait(60)
    threads[1].start()
    threads[1].join(1.5)
    assert threads[1].is_alive()
    may_end.set()
    for thread in threads:
        thread.join(60)
    assert len(computed) == 1


def die_while_writing(trial, store, folder):
    def write_half(tensors, path):
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    features.save_file = write_half
    Run(trial, store, folder / "killed", features=storage_in(folder / "runs"))


def test_a_process_that_is_killed_while_it_writes_leaves_nothing_that_is_read(frozen, store, tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=die_while_writing, args=(frozen, store, tmp_path))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert [path.read_bytes() for path in tmp_path.glob(f"runs/features/**/{FEATURES_FILE}")] == [b"half"]
    plain = Run(frozen, store, tmp_path / "plain")
    cached = Run(frozen, store, tmp_path / "cached", features=storage_in(tmp_path / "runs"))
    assert_same_training(cached, plain)
    assert not list(tmp_path.glob("runs/features/.*"))


def test_features_are_mapped_into_memory_and_a_damaged_file_is_named(frozen, store, computed, tmp_path):
    runs = Path(shutil.copytree(computed, tmp_path / "runs"))
    network = Run(frozen, store, tmp_path / "run", features=storage_in(runs)).network
    assert str(runs / "features") in Path("/proc/self/maps").read_text()
    del network
    for path in runs.glob(f"features/*/{FEATURES_FILE}"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"{FEATURES_FILE} can't be loaded: .*; remove .*, which is then computed"):
        Run(frozen, store, tmp_path / "again", features=storage_in(runs))


def test_in_an_object_store_they_are_computed_once_and_copied(object_store, tmp_path):
    runs, computed = RunStorage.of(object_store.uri("bucket/features")), []

    def compute():
        computed.append(None)
        return {"vectors": torch.arange(6.0).reshape(2, 3)}

    for name in ("one", "other"):
        storage = FeatureStorage(runs, tmp_path / name)
        for _ in range(2):
            assert storage.fetch("key", "features", compute)["vectors"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert len(computed) == 1


def test_trials_of_a_sweep_share_features_through_their_run_storage(frozen, store, tmp_path, caplog):
    caplog.set_level(logging.INFO, "chorale.features")
    runs, ledger, messages = RunStorage.of(tmp_path), create_ledger(tmp_path), []
    site = RunContext(str(store), runs, ledger.tracking_uri)
    for temperature in (0.1, 0.2):
        trial = replace(frozen, temperature=temperature)
        lease = leases.acquire(runs, compute_signature(trial, str(store)))
        run_id = ledger.claim(trial, lease.signature, None)
        train_in_process(TrainingJob(trial, lease, run_id, site, Allocation()), lambda _: None)
        messages.append([record.message for record in caplog.records if record.message.endswith("are computed")])
    assert len(messages[0]) == len(messages[1]) == 7
