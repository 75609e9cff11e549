"""Write a store, runs, an ensemble and an index of recordings, as small as they can be, in the formats of this code.

    python tests/formats/write.py NAME

makes tests/formats/NAME.zip, which tests/formats/test_formats.py opens with all later code. Run it before a change of
a format.
"""

import csv
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

ROOT = Path(__file__).parents[2]
RATE_HZ = 32_000

SPACE = """
from dataclasses import replace
from sweeps.spaces import fine_tuning, from_scratch

def smallest(splits, precision):
    base = from_scratch(splits, "float32", "cnn:small", rate=1e-3, epochs=2)
    text = replace(base.text, width=16, layers=1, heads=2)
    audio = replace(base.audio, channels=(4, 8), convolutions=(1, 1), stem_channels=4, segment_s=0.5)
    base = replace(base, audio=audio, text=text, batch_size=4, embedding_size=8)
    return [replace(fine_tuning(splits, base, 0.3, epochs=2), paraphrase_probability=0.5)]
"""


def write_corpus(folder: Path) -> None:
    """Write tones of half a second with captions, and a row whose file is absent."""
    rng = np.random.default_rng(0)
    rows = [("absent.flac", "Nothing sounds", "train")]
    for split, count in (("train", 6), ("validation", 4), ("test", 4)):
        for index in range(count):
            hz = 200 * 2 ** (index % 4)
            samples = 0.3 * np.sin(2 * np.pi * hz * np.arange(RATE_HZ // 2) / RATE_HZ) + rng.normal(0, 0.01)
            soundfile.write(folder / f"{split}-{index}.flac", samples, RATE_HZ)
            rows.append(
                (f"{split}-{index}.flac", f"A tone of {hz} hertz sounds while a dog barks {index} times", split)
            )
    with (folder / "captions.csv").open("w", newline="") as out:
        csv.writer(out).writerows([("file_name", "caption", "split"), *rows])


def run(folder: Path, *words: object) -> None:
    """Run a command of the project in the folder that will be packed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *map(str, words)], cwd=folder, env=environment, check=True)


def main() -> None:
    """Write the archive named on the command line."""
    (name,) = sys.argv[1:]
    with tempfile.TemporaryDirectory() as scratch:
        corpus, folder = Path(scratch) / "corpus", Path(scratch) / "formats"
        corpus.mkdir()
        folder.mkdir()
        write_corpus(corpus)
        space = Path(scratch) / "space.py"
        space.write_text(SPACE)
        store = ("--store", folder / "store")
        run(folder, ROOT / "data/prepare.py", "folder", "--source", corpus, *store, "--codec", "flac")
        run(folder, ROOT / "data/paraphrase.py", "folder", "--split", "train", "--model", "grammar", *store)
        sweep = ("--space", f"{space}:smallest", "--corpus", "folder", "--name", "sweep", "--keep-epochs")
        run(folder, ROOT / "sweeps/grid.py", *sweep, *store, "--runs", "runs")
        run(folder, ROOT / "ensemble/select.py", "--metric", "map10", "--runs", "runs", "--folds", 2, "--method", "all")
        ensemble = ("--ensemble", folder / "runs/ensembles/sweep/ensemble.json", "--runs", "runs")
        run(folder, ROOT / "ensemble/export.py", *ensemble, "--out", folder / "exported")
        index = ("--index", folder / "index", "--add", corpus)
        run(folder, ROOT / "ensemble/search.py", folder / "exported", *index, "a low tone")
        for unneeded in ("trials", "leases", "tune"):
            shutil.rmtree(folder / "runs" / unneeded, ignore_errors=True)
        shutil.make_archive(str(Path(__file__).with_name(name)), "zip", folder)


if __name__ == "__main__":
    main()
