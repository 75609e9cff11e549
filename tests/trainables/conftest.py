"""A small store and a tiny trial: real files, real encoders, a few hundred kilobytes and a second or two."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import ByteLevelBPETokenizer
from transformers import BertForPreTraining, DistilBertForMaskedLM, MPNetModel, RobertaForMaskedLM

from data.corpora import synthetic
from data.schema import Split
from data.store import shard_writer, split_writer
from data.store.stored_split import open_split
from data.waveform import Codec
from trainables.encoders.audio import cnn
from trainables.encoders.text import transformer
from trainables.records.embeddings import Embeddings, write_embeddings
from trainables.schedule import Schedule
from trainables.training.distillation import list_texts
from trainables.trial import Trial

SIZES = synthetic.Config(development=13, validation=6, evaluation=6, min_duration_s=5.0, max_duration_s=6.0)

WriteTextModel = Callable[..., Path]
WriteTeacher = Callable[..., Path]
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
        path = folder / shard_writer.build_shard_name(0, split.clips, codec)
        shard = shard_writer.write_shard(path, split.corpus, split.name, split.clips, codec)
        split_writer.write_paraphrases(folder, split.paraphrases)
        split_writer.write_split(folder, split, codec, [shard])

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


SPECIAL_TOKENS = {
    "bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    "distilbert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    "mpnet": ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>"],
    "roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
}
RELEASED_AS = {
    "bert": BertForPreTraining,
    "distilbert": DistilBertForMaskedLM,
    "mpnet": MPNetModel,
    "roberta": RobertaForMaskedLM,
}
"""The classes whose weights the hub has, heads included; sentence-transformers' models have none."""


@pytest.fixture(scope="session")
def write_text_model() -> WriteTextModel:
    """Writes a text model as the hub has it, with random weights and a vocabulary of some captions' words."""

    def write(folder: Path, architecture: str, captions: list[str], **shape: int) -> Path:
        folder.mkdir(parents=True)
        torch.manual_seed(0)
        released = RELEASED_AS[architecture]
        released(released.config_class(**shape)).save_pretrained(folder)
        special = SPECIAL_TOKENS[architecture]
        if architecture == "roberta":
            tokenizer = ByteLevelBPETokenizer()
            tokenizer.train_from_iterator(captions, vocab_size=300, special_tokens=special, show_progress=False)
            tokenizer.save_model(str(folder))
        else:
            words = sorted({word for caption in captions for word in caption.split()})
            (folder / "vocab.txt").write_text("\n".join([*special, *words]) + "\n")
        if architecture == "bert":  # its release still has the first names of LayerNorm's weights
            weights = load_file(folder / "model.safetensors")
            for now, then in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
                weights = {name.replace(now, then): tensor for name, tensor in weights.items()}
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return write


@pytest.fixture
def fine_tuning(trial) -> Trial:
    return replace(trial, pretraining=replace(trial, paraphrase_probability=0.0))


@pytest.fixture(scope="session")
def write_teacher(store) -> WriteTeacher:
    """Writes random embeddings of the training split, paraphrases included, as a teacher's."""

    def write(path: Path, trial: Trial, seed: int = 0) -> Path:
        (name,) = trial.train
        split, rng = open_split(store, name), np.random.default_rng(seed)
        texts = list_texts(split, trial.paraphrase_probability > 0)
        vectors = rng.normal(size=(len(split.clip_ids) + len(texts), 8)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        audio, text = np.split(vectors, [len(split.clip_ids)])
        relevant = [[] for _ in texts]
        write_embeddings(path, Embeddings("", name, split.fingerprint, split.clip_ids, texts, relevant, audio, text))
        return path

    return write
