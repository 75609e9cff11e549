"""BEATs against the package's own inference, on checkpoints of the released layout with random weights."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torchaudio.functional import resample

from data.errors import UserError
from trainables import encoders
from trainables.encoders import published
from trainables.encoders.audio import beats
from trainables.encoders.audio.beats import VARIANTS, Config
from trainables.networks import load_network_module

openbeats = pytest.importorskip("openbeats.model")

TINY = VARIANTS["tiny"]
CFG = {theirs: asdict(TINY)[ours] for theirs, ours in beats.NAMES.items()} | {
    "dropout": 0.1, "encoder_layerdrop": 0.05, "finetuned_model": True, "predictor_class": 7,
}  # fmt: skip


def build(config: Config, weights: Path | None = None):
    return load_network_module(config).build(config, weights)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A fine-tuned model as it is released, with a classifier."""
    torch.manual_seed(0)
    state = build(TINY).beats.state_dict()
    state |= {"predictor.weight": torch.randn(7, TINY.width), "predictor.bias": torch.randn(7)}
    path = tmp_path_factory.mktemp("beats") / "BEATs_iter3_plus_AS2M.pt"
    torch.save({"cfg": CFG, "model": state}, path)
    return path


@pytest.fixture
def config(checkpoint):
    return encoders.config_of_variant("audio", f"beats:{checkpoint}")


def noise(*seconds: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Segments of 5 s that are filled for so many seconds, and their numbers of samples."""
    counts = torch.tensor([round(32_000 * one) for one in seconds])
    segments = 0.1 * torch.randn(len(seconds), 160_000, generator=torch.Generator().manual_seed(0))
    return segments * (torch.arange(160_000) < counts[:, None]), counts


@torch.no_grad()
def embed(encoder, segments, counts):
    return encoder(segments, torch.empty(0), torch.Generator(), num_samples_S=counts)


def test_the_architecture_is_read_from_the_file(config, checkpoint):
    assert replace(config, model=None) == replace(TINY, segment_s=10.0)
    assert encoders.format_label(config) == f"beats:{checkpoint.name}"
    assert beats.weights_fingerprint(config) == f"sha256:{published.hash_file(checkpoint)}"


def test_vectors_equal_those_of_the_package(config, checkpoint):
    with pytest.warns(FutureWarning, match="weight_norm"):
        theirs = openbeats.OpenBeats.from_pretrained(str(checkpoint))
    segments, counts = noise(5.0, 5.0)
    ours = embed(build(config).eval(), segments, counts)
    for row, segment in zip(ours, segments, strict=True):
        with pytest.warns(FutureWarning, match="autocast"):
            patches = theirs.encode(resample(segment, 32_000, 16_000))["patch_embeddings"]
        assert patches.shape == (31 * 8, TINY.width)
        torch.testing.assert_close(row, torch.from_numpy(patches).mean(0), rtol=0, atol=1e-5)


def test_vectors_depend_neither_on_padding_nor_on_the_batch(config):
    """All patches of the shorter segments lie within the recording."""
    encoder = build(config).eval()
    segments, counts = noise(5.0, 2.0, 0.05, 0.0)
    together = embed(encoder, segments, counts)
    for row, segment, count in zip(together, segments, counts, strict=True):
        alone = embed(encoder, segment[None], count[None])
        torch.testing.assert_close(row, alone[0], rtol=0, atol=1e-5)
        louder = segment.clone()
        louder[max(int(count), 6_000) :] = 0.3
        torch.testing.assert_close(row, embed(encoder, louder[None], count[None])[0], rtol=0, atol=1e-5)


def test_released_files_are_read_from_the_folder_of_weights(config, checkpoint):
    named = replace(config, model="BEATs_iter3_plus_AS2M.pt")
    with pytest.raises(UserError, match=r"BEATs_iter3_plus_AS2M\.pt of BEATs is missing: download it"):
        build(named)
    state = build(named, checkpoint.parent).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in build(config).state_dict().items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"a": torch.zeros(1)}}, "isn't a checkpoint of BEATs: it must have the architecture"),
        ({"cfg": CFG, "model": {"a": torch.zeros(1)}}, "isn't a checkpoint of this model"),
        ({"cfg": CFG, "model": {"a": {1, 2}}}, "holds no weights"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(UserError, match=message):
        build(encoders.config_of_variant("audio", f"beats:{tmp_path / 'other.pt'}"))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match=r"beats:iter3\+.*beats:FILE"):
        encoders.config_of_variant("audio", "beats:base")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"segment_s": 0.1}, "at least 0.175 s"),
        ({"heads": 3}, "multiple of heads"),
    ],
)
def test_bad_settings_are_refused(setting, message):
    with pytest.raises(UserError, match=message):
        replace(TINY, **setting)
