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
import torch
from safetensors.torch import save_file
from torch.nn import functional
from torchaudio.compliance.kaldi import fbank
from torchaudio.functional import resample
from trainables import encoders
from trainables.networks import load_network_module
weights, image = Path(sys.argv[2]), "modality_encoders.IMAGE."
weights.mkdir()
torch.manual_seed(0)
sizes = {"attn.qkv": (96, 32), "attn.proj": (32, 32), "mlp.fc1": (128, 32), "mlp.fc2": (32, 128)}
state = {image + "local_encoder.proj.weight": (32, 1, 16, 16), image + "local_encoder.proj.bias": (32,)}
state |= {image + "extra_tokens": (1, 1, 32), image + "fixed_positional_encoder.positions": (1, 512, 32)}
norms = [image + "context_encoder.norm", "blocks.0.norm1", "blocks.0.norm2"]
state |= {name + "." + part: (32,) for name in norms for part in ("weight", "bias")}
state |= {"blocks.0." + name + ".weight": size for name, size in sizes.items()}
state |= {"blocks.0." + name + ".bias": size[:1] for name, size in sizes.items()}
state = {name: torch.randn(size) * size[-1] ** -0.5 for name, size in state.items()}
save_file(state | {"decoder.proj.weight": torch.zeros(2)}, weights / "tiny.safetensors")
with open("trainables/encoders/audio/eat.py", "a") as file:  # a smaller variant, for speed
    file.write('VARIANTS = {"tiny": Config("tiny.safetensors", width=32, layers=1, heads=2)}\\n')
check("trainables/encoders/audio/eat.py", "--weights", str(weights))

# The network from its published description: layers are normalised after each sum.
def linear(x, name):
    return functional.linear(x, state[f"blocks.0.{name}.weight"], state[f"blocks.0.{name}.bias"])
def norm(x, name):
    return functional.layer_norm(x, (32,), state[name + ".weight"], state[name + ".bias"], 1e-6)
segment = 0.1 * torch.randn(1, round(10.24 * 32_000))
samples = resample(segment, 32_000, 16_000)
mels = fbank(samples - samples.mean(), htk_compat=True, window_type="hanning", num_mel_bins=128, dither=0.0)
mels = (functional.pad(mels, (0, 0, 0, 2)) + 4.268) / (2 * 4.569)
x = functional.conv2d(mels[None, None], *[state[image + "local_encoder.proj." + one] for one in ("weight", "bias")],
                      stride=16)
x = x.flatten(2).transpose(1, 2) + state[image + "fixed_positional_encoder.positions"]
x = norm(torch.cat([state[image + "extra_tokens"], x], dim=1), image + "context_encoder.norm")
q, k, v = (one.view(513, 2, 16).transpose(0, 1) for one in linear(x[0], "attn.qkv").chunk(3, dim=1))
heads = (q @ k.transpose(1, 2) / 4).softmax(dim=2) @ v
x = norm(x[0] + linear(heads.transpose(0, 1).flatten(1), "attn.proj"), "blocks.0.norm1")
x = norm(x + linear(functional.gelu(linear(x, "mlp.fc1")), "mlp.fc2"), "blocks.0.norm2")
config = encoders.config_of_variant("audio", "eat:tiny")
with torch.no_grad():
    vector = load_network_module(config).build(config, weights).eval()(segment, torch.empty(0), torch.Generator())
torch.testing.assert_close(vector[0], x[0], rtol=0, atol=1e-5)
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
