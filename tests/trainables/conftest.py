"""A small store and a tiny trial: real files, real encoders, a few hundred kilobytes and a second or two."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data import shards
from data.corpora import synthetic
from data.schema import Split
from data.waveform import Codec
from trainables.encoders.audio import cnn
from trainables.encoders.text import transformer
from trainables.schedule import Schedule
from trainables.trial import Trial

SIZES = synthetic.Config(development=13, validation=6, evaluation=6, min_duration_s=5.0, max_duration_s=6.0)

WriteSplit = Callable[[Path, Split, Codec], None]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Bit-for-bit comparisons need a fixed number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def write_split() -> WriteSplit:
    """Writes a split into a store, as `data/prepare.py` does but without Ray."""

    def write(store: Path, split: Split, codec: Codec) -> None:
        folder = store / split.corpus / split.name
        path = folder / shards.shard_name(0, split.clips, codec)
        shard = shards.write_shard(path, split.corpus, split.name, split.clips, codec)
        shards.write_paraphrases(folder, split.paraphrases)
        shards.write_split(folder, split, codec, [shard])

    return write


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, write_split: WriteSplit) -> Path:
    """13, 6 and 6 clips of 5 to 6 s, five captions each."""
    folder = tmp_path_factory.mktemp("store")
    for split in synthetic.read(None, config=SIZES):
        write_split(folder, split, "pcm16")
    return folder


@pytest.fixture(scope="session")
def trial() -> Trial:
    """Everything that draws is on: crops, paraphrases, jitter, masks and dropout. An epoch takes half a second."""
    small = cnn.VARIANTS["small"]
    return Trial(
        audio=replace(
            small,
            channels=(8, 8),
            convolutions=(1, 1),
            stem_channels=8,
            segment_s=2.0,
            front_end=replace(small.front_end, mask_mels=8, mask_frames=10),
        ),
        text=replace(transformer.VARIANTS["small"], width=32, layers=1, heads=2),
        train=("synthetic/development",),
        validation="synthetic/validation",
        test="synthetic/evaluation",
        schedule=Schedule(peak_rate=3e-3, final_rate=1e-4, epochs=2),
        batch_size=8,
        embedding_size=32,
        temperature=0.1,
        paraphrase_probability=0.3,
        longest_audio_s=4.0,
    )
