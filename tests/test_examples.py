"""The diffs in docs/examples, which CONTRIBUTING.md shows, applied to a copy of the packages."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).parents[1]

CONTRACT = "tests/trainables/encoders/test_contract.py"
RUN_CONTRACT = f"""
import subprocess, sys
def check(*words):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", {CONTRACT!r}, "--encoder", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
"""

ENCODER = (
    RUN_CONTRACT
    + """
check("trainables/encoders/text/bag.py")
"""
)

AUDIO_ENCODER = (
    RUN_CONTRACT
    + """
from pathlib import Path
import numpy as np
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
from data.loading.batch import Batch
from trainables import encoders
from trainables.networks import load_network_module
from trainables.networks.dual_encoder import embed_segments
weights = Path(sys.argv[2])
torch.manual_seed(0)
shape = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 128,
         "decoder_layers": 1, "decoder_attention_heads": 2, "vocab_size": 20, "pad_token_id": 0}
with open("trainables/encoders/audio/whisper.py", "a") as file:  # a smaller variant, for speed
    file.write('VARIANTS = {"tiny": Config("whisper-tiny", width=32, layers=1, heads=2)}\\n')
published = WhisperForConditionalGeneration(WhisperConfig(**shape)).eval()
published.save_pretrained(weights / "whisper-tiny")
check("trainables/encoders/audio/whisper.py", "--weights", str(weights))

# A recording of 12 s, at 16 kHz: the library's encoder gives 1500 outputs, of which 600 are the recording's.
config = encoders.config_of_variant("audio", "whisper:tiny")
network = load_network_module(config).build(config, weights).eval()
samples = np.random.default_rng(0).normal(scale=0.1, size=(1, 12 * 16_000)).astype(np.float32)
features = WhisperFeatureExtractor()(samples[0], sampling_rate=16_000, return_tensors="pt").input_features
padded = torch.zeros(1, 30 * 16_000)
padded[:, : samples.shape[1]] = torch.from_numpy(samples)
with torch.no_grad():
    states = published.get_encoder()(features).last_hidden_state[0]
    network.compute_log_mel = lambda segments, compute=network.compute_log_mel: features
    batch = Batch.without_captions(torch.zeros(1, 30 * 32_000), [1], [0], torch.tensor([12 * 32_000]))
    vector = embed_segments(network, batch, torch.Generator())[0]
torch.testing.assert_close(vector, states[:600].mean(dim=0), rtol=0, atol=1e-5)
assert not torch.allclose(vector, states.mean(dim=0), rtol=0, atol=1e-3)
del network.compute_log_mel
import trainables.networks.audio.whisper as module
module.resample = lambda samples, *rates: samples
torch.testing.assert_close(network.compute_log_mel(padded), features, rtol=0, atol=1e-4)
"""
)

CORPUS = """
import sys
from data.prepare import main
from data.store.storage import Store
from data.store.stored_split import open_split
assert main(["named", "--source", sys.argv[1], "--store", sys.argv[2]]) == 0
captions = open_split(Store.of(sys.argv[2]), "named/train").index["captions"].to_pylist()
assert captions == [["A bell rings"], ["A bell rings"], ["Rain falls"]], captions
"""

METRIC = """
import numpy as np
from ensemble.pool.score_matrices import from_arrays
from ensemble.selection.greedy import SelectionConfig, select_by
from trainables.retrieval import build_relevance, compute_metrics, compute_ranks, find_metric
rng = np.random.default_rng(0)
clips = [f"clip{number}" for number in range(30)]
relevant = build_relevance([sorted(rng.choice(clips, size=3, replace=False)) for _ in range(20)], clips)
arrays = [rng.normal(size=(20, 30)).astype(np.float32) for _ in range(4)]
first = [set(np.argsort(-row)[:5]) for row in arrays[0]]
hits = [clip in first[query] for query, clip in zip(relevant.query_P, relevant.clip_P)]
assert abs(compute_metrics(arrays[0], relevant, ["p5"])["p5"] - sum(hits) / 20 / 5) < 1e-12
pool = from_arrays(list("abcd"), "x/y", "", relevant, arrays)
def mean(scores_QA):
    return float(find_metric("p5")(compute_ranks(scores_QA, relevant), relevant).mean())
fast, slow = (select_by(metric, pool, SelectionConfig(max_size=6)) for metric in ("p5", mean))
assert fast.counts == slow.counts
assert abs(fast.value - slow.value) < 1e-12
"""

CHALLENGE = """
import csv, io
import numpy as np
from ensemble.challenge import formats, validation
files = [f"{number}.wav" for number in range(12)]
evaluation = formats.EvaluationSet("clotho/challenge", ["rain", "a bell"], files, {})
challenge = formats.find_challenge("dcase2024")
text = io.StringIO()
csv.writer(text).writerows(challenge.rows(np.random.default_rng(0).normal(size=(2, 12)), evaluation))
check = validation.make_output_check("dcase2024")
assert not list(check(text.getvalue().encode(), "Doe_EX_task8_1", evaluation))
assert list(check(text.getvalue().replace("bell", "horn").encode(), "Doe_EX_task8_1", evaluation))
assert challenge.output_name("Doe_EX", 1) == "task8/Doe_EX_task8_1/Doe_EX_task8_1.output.csv"
"""

CHECKS = {
    "add_encoder": ENCODER,
    "add_audio_encoder": AUDIO_ENCODER,
    "add_corpus": CORPUS,
    "add_metric": METRIC,
    "add_challenge": CHALLENGE,
}


def test_every_example_is_checked():
    assert {path.stem for path in (ROOT / "docs/examples").glob("*.diff")} == set(CHECKS)


@pytest.mark.parametrize("example", CHECKS)
def test_an_example_applies_and_works(example, tmp_path):
    """As a process: the changed packages have the names of those that this process has imported."""
    for package in ("data", "trainables", "sweeps", "ensemble"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("tests/conftest.py", "tests/trainables/conftest.py", CONTRACT, "pyproject.toml"):
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / part, tmp_path / part)
    diff = ROOT / "docs/examples" / f"{example}.diff"
    subprocess.run(["git", "apply", "--unsafe-paths", f"--directory={tmp_path}", diff], cwd=tmp_path, check=True)
    source = tmp_path / "source"
    for split in ("train", "validation", "test"):
        (source / split).mkdir(parents=True)
        for name in ("A bell rings", "A bell rings 2", "Rain falls"):
            noise = np.random.default_rng(0).normal(size=32_000) * 0.1
            soundfile.write(source / split / f"{name}.wav", noise, 32_000)
    done = subprocess.run(
        [sys.executable, "-c", CHECKS[example], source, tmp_path / "store"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
