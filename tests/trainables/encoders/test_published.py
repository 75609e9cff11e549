"""Checkpoints of the released layouts (published/README.md) with random numbers: loaded, fingerprinted, refused."""

import csv
import os
import pickle
import shutil
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hear21passt.models import passt as theirs
from torch import Tensor

from data.errors import UserError
from data.loading.batch import NUM_MASK_DRAWS, Batch
from data.schema import SAMPLE_RATE_HZ
from trainables import encoders
from trainables.encoders import published
from trainables.encoders.audio import cnn14, passt
from trainables.encoders.text import huggingface
from trainables.networks import dual_encoder, load_network_module
from trainables.networks.audio.passt import PasstEncoder
from trainables.signature import Fingerprints, describe_encoder
from trainables.training.loss import nt_xent

CNN14 = "Cnn14_mAP=0.431.pth"
RELEASES = {
    "passt:N": "passt-s-f128-p16-s16-ap.468.pt",
    "passt:S": "passt-s-kd-ap.486.pt",
    "passt:S15": "passt-s-f128-20sec-p16-s10-ap.474-swa.pt",
    "cnn14:audioset": CNN14,
}

Table = dict[str, tuple[tuple[int, ...], torch.dtype]]


def table(file: str) -> Table:
    with (Path(__file__).parent / "published" / f"{file}.csv").open(newline="") as lines:
        return {
            row["name"]: (tuple(int(size) for size in row["shape"].split("x") if size), getattr(torch, row["dtype"]))
            for row in csv.DictReader(lines)
        }


def constants(file: str) -> dict[str, Tensor]:
    """One number a tensor, expanded to its shape: a few kilobytes on disk."""
    numbers = enumerate(table(file).items(), start=1)
    return {name: torch.tensor(number, dtype=dtype).expand(shape) for number, (name, (shape, dtype)) in numbers}


def write(folder: Path, file: str, state: Any = None) -> Path:
    """A checkpoint as it is released: PANNs' holds its weights beside other things."""
    state = constants(file) if state is None else state
    torch.save({"iteration": 600_000, "model": state} if file == CNN14 else state, folder / file)
    return folder / file


def build(name: str, weights: Path | None) -> Any:
    config = encoders.config_of_variant("audio", name)
    return load_network_module(config).build(config, weights)


def weights_of(encoder: Any) -> dict[str, Tensor]:
    """Under their released names."""
    state: dict[str, Tensor] = (encoder.net if isinstance(encoder, PasstEncoder) else encoder).state_dict()
    return state


# Loading.


@pytest.mark.parametrize(("name", "file"), RELEASES.items())
def test_a_released_checkpoint_is_found_by_its_name_and_loaded(name, file, tmp_path, capsys):
    write(tmp_path, file)
    encoder = build(name, tmp_path)
    assert capsys.readouterr() == ("", "")
    released, loaded = constants(file), weights_of(encoder)
    assert all(torch.equal(tensor, released[name]) for name, tensor in loaded.items())
    left = {name.partition(".")[0] for name in released.keys() - loaded.keys()}
    heads = {"head", "head_dist"}
    assert left == ({"spectrogram_extractor", "logmel_extractor", "fc_audioset"} if file == CNN14 else heads)


def test_addresses_are_those_that_hear21passt_downloads_from():
    assert set(passt.RELEASES.values()) <= {entry["url"] for entry in theirs.default_cfgs.values()}


def test_the_table_of_cnn14_comes_to_the_size_of_the_released_file():
    num_bytes = sum(prod(shape) * dtype.itemsize for shape, dtype in table(CNN14).values())
    assert 0 < 327_428_481 - num_bytes < 200 * len(table(CNN14))  # the rest is names


def test_hear21passt_loads_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    cache = tmp_path / "checkpoints"
    cache.mkdir()
    write(cache, RELEASES["passt:N"])
    reference = theirs.get_model("passt_s_p16_s16_128_ap468", fstride=16, tstride=16, input_tdim=1000).state_dict()
    loaded = weights_of(build("passt:N", None))  # from the same cache
    assert reference.keys() - loaded.keys() == {name for name in reference if name.startswith("head")}
    assert all(torch.equal(tensor, reference[name]) for name, tensor in loaded.items())


def test_without_a_directory_a_file_is_downloaded_once(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    source = tmp_path / "a=b.pt"
    torch.save({}, source)
    url = source.as_uri()
    assert "%3D" in url
    path = published.locate_checkpoint(url, None)
    assert (path.name, path.read_bytes()) == (source.name, source.read_bytes())
    source.unlink()
    assert published.locate_checkpoint(url, None) == path


def test_a_download_that_fails_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(UserError, match=r"absent\.pt can't be downloaded .*--weights"):
        published.locate_checkpoint((tmp_path / "absent.pt").as_uri(), None)
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize(("name", "file"), RELEASES.items())
def test_an_absent_file_is_named(name, file, tmp_path):
    config = encoders.config_of_variant("audio", name)
    for function in (build, lambda _, weights: encoders.module_of_config(config).weights_fingerprint(config, weights)):
        with pytest.raises(UserError, match=rf"holds no file '{file}': download it from https"):
            function(name, tmp_path)


def test_what_a_training_left_beside_the_weights_may_be_numpys_numbers(tmp_path):
    """As NumPy 1 wrote them, in torch's old format."""
    beside = {"indexes": np.arange(3), "loss": np.float64(0.5), "on": np.array([True])}
    path = tmp_path / "old.pth"
    torch.save({"model": {"a": torch.ones(2)}, "sampler": beside}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"numpy._core", b"numpy.core"))
    assert torch.equal(published.read_state_dict(path)["a"], torch.ones(2))


# Fingerprints.


def test_a_fingerprint_is_of_contents_and_not_of_places(tmp_path):
    config = encoders.config_of_variant("audio", "cnn14:audioset")
    fingerprints = []
    for folder, contents in (("here", b"weights"), ("there", b"weights"), ("elsewhere", b"others")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / CNN14).write_bytes(contents)
        fingerprints.append(cnn14.weights_fingerprint(config, tmp_path / folder))
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    assert fingerprints[0].startswith("sha256:")
    assert cnn14.weights_fingerprint(config) == cnn14.RELEASE
    assert cnn14.weights_fingerprint(replace(config, pretrained=False), tmp_path) == "random"


def test_a_fingerprint_is_computed_again_only_for_a_changed_file(tmp_path):
    path = tmp_path / RELEASES["passt:N"]
    fingerprint = partial(passt.weights_fingerprint, passt.VARIANTS["N"], tmp_path)
    path.write_bytes(b"weights")
    first, computed = fingerprint(), published.hash_file_version.cache_info().misses
    assert fingerprint() == first
    assert published.hash_file_version.cache_info().misses == computed
    path.write_bytes(b"changed")
    os.utime(path, ns=(0, 0))
    assert fingerprint() != first


def test_a_trials_encoder_is_described_by_the_weights_in_the_directory(tmp_path):
    config = encoders.config_of_variant("audio", "passt:N")
    (tmp_path / RELEASES["passt:N"]).write_bytes(b"weights")
    for weights in (tmp_path, None):
        fingerprint = passt.weights_fingerprint(config, weights)
        described = describe_encoder(config, Fingerprints({}, {}, {}, {config: fingerprint}))
        assert described["weights"] == fingerprint
    assert fingerprint == "hear21passt:passt_s_p16_s16_128_ap468"


# Refusals.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc1.bias": None}, r"1 names are missing \(fc1\.bias\)$"),
        ({"fc2.bias": torch.zeros(3)}, r"1 names are unexpected \(fc2\.bias\)$"),
        ({"fc1.bias": torch.zeros(3)}, r"1 shapes differ \(fc1\.bias \[3\] instead of \[2048\]\)$"),
        (
            {f"{name}.weight": None for name in ("bn0", "fc1", "conv_block1.bn1", "conv_block6.conv2")},
            r"4 names are missing \(bn0\.weight, conv_block1\.bn1\.weight, conv_block6\.conv2\.weight, \.\.\.\)$",
        ),
    ],
)
def test_a_checkpoint_that_differs_is_refused_with_what_differs(change, message, tmp_path):
    state = {name: tensor for name, tensor in (constants(CNN14) | change).items() if tensor is not None}
    write(tmp_path, CNN14, state)
    with pytest.raises(UserError, match=message):
        build("cnn14:audioset", tmp_path)


@pytest.mark.parametrize(
    ("name", "released", "message"),
    [
        ("passt:N", "passt:S", r"2 shapes differ \(freq_new_pos_embed \[1, 768, 12, 1\] instead of \[1, 768, 8, 1\]"),
        ("cnn14:audioset", "passt:N", r"79 names are missing .*; 159 names are unexpected"),
    ],
)
def test_another_models_checkpoint_is_refused(name, released, message, tmp_path):
    write(tmp_path, RELEASES[name], constants(RELEASES[released]))
    with pytest.raises(UserError, match=message):
        build(name, tmp_path)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("left", [0.0, 0.01, 0.3, 0.7, 0.999])
def test_a_torn_checkpoint_is_named(is_zip, left, tmp_path):
    path = tmp_path / "torn.pt"
    torch.save({str(name): torch.rand(100) for name in range(9)}, path, _use_new_zipfile_serialization=is_zip)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(left * len(whole))])
    with pytest.raises(UserError, match=r"torn\.pt is truncated or not a checkpoint"):
        published.read_state_dict(path)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("wrap", [lambda one: one, lambda one: np.array([one], dtype=object)])
def test_a_checkpoint_that_would_run_code_is_refused(wrap, tmp_path):
    path = tmp_path / "malicious.pt"
    torch.save({"a": torch.ones(1), "b": wrap(Malicious(tmp_path / "made"))}, path)
    with pytest.raises(UserError, match=r"malicious\.pt is truncated or not a checkpoint"):
        published.read_state_dict(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("contents", [{"a": 3}, [torch.ones(1)], {"model": {"a": "b"}}])
def test_a_file_without_weights_is_refused(contents, tmp_path):
    torch.save(contents, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt holds no weights"):
        published.read_state_dict(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "contents", [b"<html>", b"version https://git-lfs.github.com/spec/v1\n", pickle.dumps(3, protocol=2)]
)
def test_a_file_that_is_no_checkpoint_is_refused(contents, tmp_path):
    (tmp_path / "a.pt").write_bytes(contents)
    with pytest.raises(UserError, match=r"a\.pt (is truncated or not a checkpoint|holds no weights)"):
        published.read_state_dict(tmp_path / "a.pt")


# Every pair of encoders of the paper's Table 2, at full size.

LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
ROBERTA = {"vocab_size": 50_265, "max_position_embeddings": 514, "type_vocab_size": 1}
TEXT_MODELS = {
    "bert-base": ("bert", {"vocab_size": 30_522}),
    "bert-large": ("bert", {"vocab_size": 30_522, **LARGE}),
    "roberta-base": ("roberta", ROBERTA),
    "roberta-large": ("roberta", {**ROBERTA, **LARGE}),
    "all-mpnet-base-v2": ("mpnet", {"vocab_size": 30_527, "max_position_embeddings": 514}),
}
"""Architecture and, where they differ from its configuration's defaults, the published sizes."""

PAIRS = [
    *(
        (f"passt:{audio}", text)
        for audio in "NS"
        for text in ("bert-base", "roberta-base", "bert-large", "roberta-large")
    ),
    *(("passt:S15", text) for text in ("bert-large", "roberta-large")),
    ("cnn14:audioset", "all-mpnet-base-v2"),
    ("cnn14:audioset", "bert-base"),
]
CAPTIONS = ["a dog barks twice", "rain falls on a tin roof"]


def random(file: str) -> dict[str, Tensor]:
    """Numbers of a size at which a network computes something."""
    state = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in table(file).items()}
    for name, tensor in state.items():
        if tensor.dim() > 1:
            tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5)
        elif name.endswith(("weight", "running_var")):
            tensor.fill_(1)
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory, write_text_model) -> Path:
    """A directory for --weights: the audio encoders' files, and the text encoders' directories. 5 GB."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for file in RELEASES.values():
        write(folder, file, random(file))
    for name, (architecture, shape) in TEXT_MODELS.items():
        write_text_model(folder / huggingface.VARIANTS[name].model, architecture, CAPTIONS, **shape)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("audio", "text"), PAIRS)
def test_a_pair_of_the_papers_encoders_builds_takes_a_step_and_embeds(audio, text, weights, trial):
    trial = replace(
        trial,
        audio=encoders.config_of_variant("audio", audio),
        text=huggingface.VARIANTS[text],
        embedding_size=1024,
        frozen_text=text == "all-mpnet-base-v2",  # the baseline's
    )
    network = dual_encoder.build(trial, CAPTIONS, weights).train()
    segments = 0.1 * torch.randn(3, round(trial.audio.segment_s * SAMPLE_RATE_HZ))
    batch = Batch(segments, torch.tensor([1, 2]), torch.rand(3, NUM_MASK_DRAWS), CAPTIONS, torch.arange(2))
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-4, foreach=False)  # without copies of all parameters

    def loss() -> Tensor:
        clips, captions, temperature = network(batch, network.text.tokenize(CAPTIONS), torch.Generator())
        return nt_xent(clips, captions, batch.clips, temperature)

    before = [parameter.detach().flatten()[:1].clone() for parameter in trained]
    loss().backward()
    assert not [name for name, one in network.named_parameters() if one.requires_grad and one.grad is None]
    optimizer.step()
    assert (
        sum(not torch.equal(one.flatten()[:1], old) for one, old in zip(trained, before, strict=True))
        > len(trained) / 2
    )
    optimizer.zero_grad()
    network.eval()
    with torch.no_grad():
        clips, captions, _ = network(batch, network.text.tokenize(CAPTIONS), torch.Generator())
        assert loss().isfinite()
    assert clips.shape == captions.shape == (2, 1024)
    for vectors in (clips, captions):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
        assert not torch.equal(vectors[0], vectors[1])
