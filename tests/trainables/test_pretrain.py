"""Pretraining by its command: real workers of Ray Train, one of which is killed, and a driver that is."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

from trainables.records.checkpoint import MODEL_FILE, load_model
from trainables.records.mlflow_ledger import open_ledger

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
EPOCHS = 6


def words(store, runs, *more):
    return [
        "trainables/pretrain.py", "--corpus", "folder", "--store", store, "--runs", runs, "--workers", 2,
        "--batch-size", 8, "--epochs", EPOCHS, "--micro-batch", 3, "--checkpoint-every-s", 0.5, *more,
    ]  # fmt: skip


@pytest.fixture
def pretrain(call_command, cluster):
    """A function that runs the command to its end, in this process."""
    return lambda *given: call_command(*words(*given))


def model_of(runs):
    (folder,) = (runs / "models").iterdir()
    return load_file(folder / MODEL_FILE)


@pytest.fixture(scope="module")
def pretrained(run_command, cluster, tone_store, tmp_path_factory):
    """An uninterrupted pretraining in a process of its own, as a user runs it: the folder of runs, and the output."""
    runs = tmp_path_factory.mktemp("pretrained")
    done = run_command(*words(tone_store, runs), RAY_ADDRESS=cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    return runs, done


def started(cluster, store, runs):
    """A pretraining in a process, which can be killed, that has begun and has a checkpoint to go on from."""
    environment = {"OMP_NUM_THREADS": "1", "RAY_ADDRESS": cluster}
    process = subprocess.Popen(
        [sys.executable, *map(str, words(store, runs))], cwd=ROOT, env=os.environ | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    for _ in range(600):
        if list(runs.glob("trials/*/checkpoint_*/progress.json")):
            return process
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.2)
    raise AssertionError("no checkpoint")


def assert_same_end(runs, other):
    expected, got = model_of(other), model_of(runs)
    assert expected.keys() == got.keys()
    assert all((got[name] == expected[name]).all() for name in expected)


def test_it_says_what_it_does_and_what_came_of_it(pretrained):
    _, done = pretrained
    assert re.search("2 workers with 1 CPU threads each, in (float32|bfloat16), batches of 8", done.stderr)
    assert re.search(r"^[0-9a-f]{16}: best epoch \d+: map10 [\d.]+, r1 ", done.stdout, re.MULTILINE)
    assert not re.search(r"\(pid=|\(RayTrain|INFO |WARNING", done.stdout + done.stderr)


def test_mlflow_has_what_steps_took(pretrained):
    (run,) = open_ledger(pretrained[0]).iter_trials()
    assert run.status == "FINISHED"
    step = {name: value for name, value in run.metrics.items() if name.startswith("step/")}
    assert set(step) == {
        f"step/{name}"
        for name in ("epoch", "loss", "left_s", "step_s", "pairs_per_second", "waiting_share", "memory_gb")
    }
    assert 0 < step["step/epoch"] <= EPOCHS
    assert 0 <= step["step/waiting_share"] < 1
    assert step["step/memory_gb"] > 0.1


def test_asked_for_again_it_is_finished_already(pretrained, pretrain, tone_store):
    done = pretrain(tone_store, pretrained[0])
    assert done.returncode == 0
    assert "has already finished" in done.stderr
    assert done.stdout.splitlines()[-1] == pretrained[1].stdout.splitlines()[-1]


def test_it_goes_on_by_itself_after_a_worker_is_lost(pretrained, cluster, ray_processes, tone_store, tmp_path):
    process = started(cluster, tone_store, tmp_path)
    ray_processes("RayTrainWorker")[-1].kill()
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert_same_end(tmp_path, pretrained[0])


@pytest.mark.slow
def test_it_goes_on_by_the_same_command_after_its_driver_is_lost(pretrained, pretrain, cluster, tone_store, tmp_path):
    """Through Ray Train on two workers; that a lost driver's work goes on is in tests/sweeps/test_failures.py, too."""
    process = started(cluster, tone_store, tmp_path)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = pretrain(tone_store, tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_end(tmp_path, pretrained[0])


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_told_with_its_clips_and_leaves_a_checkpoint(pretrain, tone_store, tmp_path):
    """From a worker of Ray Train to the command. Slow: training/test_train.py has it in one process."""
    done = pretrain(tone_store, tmp_path, "--peak-rate", 1e30, "--checkpoint-every-s", 0)
    assert done.returncode == 2
    assert re.search(r"^error: the loss of step \d+ is nan: .*folder/train/train-\d+\.wav", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr
    (run,) = open_ledger(tmp_path).iter_trials()
    assert run.status == "FAILED"
    (committed,) = tmp_path.glob("trials/*/committed")
    weights = load_file(committed.parent / committed.read_text() / MODEL_FILE)
    assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.slow
def test_an_audio_model_of_hugging_face_is_trained_on_two_workers(pretrain, tone_store, tmp_path):
    """DDP waits for a gradient of each of its weights. The stored model loads without the folder that it came from.

    Slow: encoders/test_audio_models.py trains models of every family in one process, and checks their gradients.
    """
    folder, runs = tmp_path / "my-ast", tmp_path / "runs"
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ASTModel(ASTConfig(**shape, max_length=98, num_mel_bins=32)).save_pretrained(folder)
    ASTFeatureExtractor(max_length=98, num_mel_bins=32).save_pretrained(folder)
    done = pretrain(
        tone_store, runs, "--audio", f"huggingface:{folder}", "--text", "transformer:shallow", "--epochs", 2
    )
    assert done.returncode == 0, done.stderr
    (run,) = open_ledger(runs).iter_trials()
    assert run.status == "FINISHED"
    assert re.search(r"^[0-9a-f]{16}: best epoch [12]: map10 ", done.stdout, re.MULTILINE)
    shutil.rmtree(folder)
    (model,) = (runs / "models").iterdir()
    assert load_model(model).audio.width == 32


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--workers", 500], "500 workers need 0.98 CPUs each, each worker on one node: the cluster can place 2"),
        (
            ["--gpus-per-worker", 1, "--workers", 2],
            "2 workers need 0.98 CPUs and 1 GPUs each, each worker on one node: the cluster can place 0",
        ),
        (["--recipe", "papr"], "unknown recipe 'papr'; known: baseline, paper, small"),
        (["--audio", "cnn:huge"], "unknown audio encoder 'cnn:huge'; known: cnn:small"),
        (["--epochs", 1, "--recipe", "paper"], "1.0 warm-up and 1.0 final epochs don't fit into 1"),
        (["--peak-rate", -1], "it must be from 0 to peak_rate (-1.0)"),
        (["--peak-rate", 0], "it must be from 0 to peak_rate (0.0)"),
        (["--weights", "nowhere", "--audio", "passt:N"], "nowhere"),
    ],
)
def test_what_cannot_be_is_refused(more, said, pretrain, tone_store, tmp_path):
    refused = pretrain(tone_store, tmp_path, *more)
    assert refused.returncode == 2
    assert said in refused.stderr
