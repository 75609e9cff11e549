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

ENCODER = """
import tempfile
from pathlib import Path
import torch
from trainables import encoders
from trainables.networks import load_network_module
config = encoders.config_of_variant("text", "bag:small")
network = load_network_module(config)
captions = ["a dog barks", "rain", "rain falls on a roof"]
encoder = network.build(config, captions).eval()
together = encoder(encoder.tokenize(captions))
assert together.shape == (3, encoder.width)
for caption, vector in zip(captions, together):
    torch.testing.assert_close(encoder(encoder.tokenize([caption]))[0], vector)
restored = network.restore(config, Path(tempfile.mkdtemp()))
restored.load_state_dict(encoder.state_dict())
torch.testing.assert_close(restored(restored.tokenize(captions)), together)
"""

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

CHECKS = {"add_encoder": ENCODER, "add_corpus": CORPUS, "add_metric": METRIC, "add_challenge": CHALLENGE}


def test_every_example_is_checked():
    assert {path.stem for path in (ROOT / "docs/examples").glob("*.diff")} == set(CHECKS)


@pytest.mark.parametrize("example", CHECKS)
def test_an_example_applies_and_works(example, tmp_path):
    """As a process: the changed packages have the names of those that this process has imported."""
    for package in ("data", "trainables", "sweeps", "ensemble"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
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
