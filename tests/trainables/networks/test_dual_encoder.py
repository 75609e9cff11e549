"""The dual encoder: frozen encoders, checkpointed activations, compiled blocks."""

import shutil
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from data.loading.batch import NUM_MASK_DRAWS, Batch
from data.schema import SAMPLE_RATE_HZ
from trainables.encoders.audio import cnn14, passt
from trainables.encoders.text import huggingface
from trainables.networks import dual_encoder
from trainables.networks.dual_encoder import DualEncoder
from trainables.trial import Trial

CAPTIONS = ["a dog barks twice", "rain", "a bell rings and rain falls"]
PASST = replace(passt.VARIANTS["tiny"], width=48, patchout_time=9, segment_s=2.0)
CNN14 = replace(cnn14.VARIANTS["audioset"], pretrained=False, channels=(4, 8, 8), segment_s=2.0)


def batch(config) -> Batch:
    """Clips of one, two and one segments."""
    generator = torch.Generator().manual_seed(0)
    segments = 0.1 * torch.randn(4, round(config.segment_s * 32_000), generator=generator)
    draws = torch.rand(4, NUM_MASK_DRAWS, generator=generator)
    return Batch(segments, torch.tensor([1, 2, 1]), draws, CAPTIONS, torch.arange(3))


def outputs(network: DualEncoder, trial: Trial) -> tuple[Tensor, Tensor]:
    """Clips and captions; what dropout draws is the same each time."""
    torch.manual_seed(1)
    audio, text, _ = network(batch(trial.audio), network.text.tokenize(CAPTIONS), torch.Generator().manual_seed(2))
    return audio, text


def gradients(network: DualEncoder, trial: Trial) -> dict[str, Tensor]:
    network.zero_grad()
    audio, text = outputs(network, trial)
    (audio @ text.T / network.temperature).square().sum().backward()
    return {name: one.grad.clone() for name, one in network.named_parameters() if one.grad is not None}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(params=["cnn", "cnn14", "passt"])
def any_trial(request, trial) -> Trial:
    audio = {"cnn": trial.audio, "cnn14": CNN14, "passt": PASST}[request.param]
    return replace(trial, audio=audio)


# Frozen encoders.


def test_dropout_of_clips_is_drawn_before_that_of_captions(trial):
    """So that trainings end as those of earlier versions: both draw from one generator."""
    network = dual_encoder.build(trial, CAPTIONS).train()
    audio, text = outputs(network, trial)
    torch.manual_seed(1)
    first = network.embed_audio(batch(trial.audio), torch.Generator().manual_seed(2))
    assert torch.equal(audio, first)
    assert torch.equal(text, network.embed_text(network.text.tokenize(CAPTIONS)))


def test_outputs_of_a_frozen_encoder_are_the_same_in_any_batch_bit_for_bit(trial):
    """Of encoders as wide that the bits of learning ones depend on the batch, where a product's order does."""
    audio = replace(trial.audio, channels=(16, 32))
    wide = replace(trial, audio=audio, text=replace(trial.text, width=128), frozen_audio=True, frozen_text=True)
    network = dual_encoder.build(wide, CAPTIONS).train()
    whole, unused = batch(audio), torch.Generator()
    for frozen, embed in (
        (network.encode_audio(whole, unused), lambda part: network.encode_audio(part, unused)),
        (
            network.encode_text(network.text.tokenize(CAPTIONS)),
            lambda part: network.encode_text(network.text.tokenize(part.captions)),
        ),
    ):
        assert not frozen.requires_grad
        assert torch.equal(frozen, torch.cat([embed(part) for part in whole.split(1)]))
        assert torch.equal(frozen, torch.cat([embed(part) for part in whole.split(2)]))


@pytest.mark.parametrize("frozen", [("audio",), ("text",), ("audio", "text")])
def test_a_frozen_encoder_has_no_gradient_and_computes_as_in_evaluation(any_trial, frozen):
    trial = replace(any_trial, **{f"frozen_{kind}": True for kind in frozen})
    network = dual_encoder.build(trial, CAPTIONS).train()
    learned = {name.partition(".")[0] for name in gradients(network, trial)}
    assert learned == {"audio", "text", "audio_projection", "text_projection", "signed_temperature"} - set(frozen)
    assert {name for name, one in network.named_parameters() if not one.requires_grad} == {
        name for name, _ in network.named_parameters() if name.startswith(tuple(f"{kind}." for kind in frozen))
    }
    trained = outputs(network, trial)
    evaluated = outputs(network.eval(), trial)
    for kind, first, second in zip(("audio", "text"), trained, evaluated, strict=True):
        assert torch.equal(first, second) == (kind in frozen)


def test_a_frozen_encoders_weights_and_statistics_stay(trial):
    trial = replace(trial, audio=replace(CNN14, frozen_statistics=False), frozen_audio=True)
    network = dual_encoder.build(trial, CAPTIONS).train()
    before = {name: tensor.clone() for name, tensor in network.audio.state_dict().items()}
    optimizer = torch.optim.Adam([one for one in network.parameters() if one.requires_grad])
    gradients(network, trial)
    optimizer.step()
    assert equal(network.audio.state_dict(), before)


def test_a_restored_model_is_frozen_as_its_trial_says(trial, tmp_path):
    trial = replace(trial, frozen_text=True)
    dual_encoder.build(trial, CAPTIONS).text.save_tokenizer(tmp_path)
    network = dual_encoder.restore(trial, tmp_path).train()
    assert not network.text.training
    assert not any(one.requires_grad for one in network.text.parameters())
    assert all(one.requires_grad for one in network.audio.parameters())


# Activations computed again.


def test_checkpointed_activations_change_no_gradient_and_no_name(any_trial):
    network = dual_encoder.build(any_trial, CAPTIONS).train()
    expected, names = gradients(network, any_trial), list(network.state_dict())
    dual_encoder.checkpoint_activations(network)
    assert list(network.state_dict()) == names
    assert equal(gradients(network, any_trial), expected)


def test_published_text_encoders_are_checkpointed_too(trial, tmp_path, write_text_model):
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    folder = write_text_model(tmp_path / "bert", "bert", CAPTIONS, vocab_size=60, **shape)
    trial = replace(trial, text=huggingface.Config(str(folder)))
    network = dual_encoder.build(trial, CAPTIONS).train()
    expected = gradients(network, trial)
    dual_encoder.checkpoint_activations(network)
    assert equal(gradients(network, trial), expected)


def numbers_kept(network: DualEncoder, trial: Trial) -> int:
    """How many numbers a forward pass keeps for the backward pass."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: sizes.append(one.numel()) or one, lambda one: one):
        outputs(network, trial)
    return sum(sizes)


def test_checkpointed_blocks_keep_fewer_activations(trial):
    trial = replace(trial, audio=PASST)
    network = dual_encoder.build(trial, CAPTIONS).train()
    kept = numbers_kept(network, trial)
    dual_encoder.checkpoint_activations(network)
    assert numbers_kept(network, trial) < kept / 2


# Compiled blocks.


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # torch's own, while it compiles
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_blocks_compute_the_same(trial, tmp_path, write_text_model):
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    folder = write_text_model(tmp_path / "bert", "bert", CAPTIONS, vocab_size=60, **shape)
    trial = replace(trial, audio=PASST, text=huggingface.Config(str(folder), dropout=0.0))
    network = dual_encoder.build(trial, CAPTIONS).train()
    expected, names = gradients(network, trial), list(network.state_dict())
    evaluated = outputs(network.eval(), trial)
    dual_encoder.checkpoint_activations(network)
    dual_encoder.compile_blocks(network)
    assert list(network.state_dict()) == names
    counters.clear()
    found = gradients(network.train(), trial)
    assert counters["stats"]["unique_graphs"] >= 2  # one an encoder, at least
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(outputs(network.eval(), trial), evaluated, rtol=0, atol=1e-5)


# Padding.


class MeanSquare(nn.Module):
    """An audio encoder that needs to know where a recording ends: the mean square of its own samples."""

    reads_num_samples = True
    width = 1

    def forward(self, segments_SN, mask_draws, generator, num_samples_S):
        return segments_SN.square().sum(dim=1, keepdim=True) / num_samples_S[:, None]


def test_an_encoder_that_reads_the_number_of_samples_gets_each_segments(trial):
    """Also in parts of a batch, as with micro-batches."""
    network = dual_encoder.DualEncoder(MeanSquare(), dual_encoder.build(trial, CAPTIONS).text, 4, 0.1)
    segments = torch.zeros(3, 10)
    segments[0], segments[1, :4], segments[2, :7] = 1.0, 2.0, 3.0
    batch = Batch.without_captions(segments, [2, 1], [0, 1], torch.tensor([10, 4, 7]))
    for part in (batch, batch.to(torch.device("cpu"))):
        features = dual_encoder.embed_segments(network.audio, part, torch.Generator())
        assert features.tolist() == [[1.0], [4.0], [9.0]]
    (first, second) = batch.split(1)
    whole = network.embed_audio(batch, torch.Generator())
    parts = torch.cat([network.embed_audio(part, torch.Generator()) for part in (first, second)])
    torch.testing.assert_close(parts, whole)


def test_built_in_encoders_do_not_depend_on_the_number_of_samples(any_trial):
    network = dual_encoder.build(any_trial, CAPTIONS).eval()
    segments = torch.randn(2, round(any_trial.audio.segment_s * SAMPLE_RATE_HZ))
    segments[1, 100:] = 0
    with torch.no_grad():
        first, second = (
            network.embed_audio(Batch.without_captions(segments, [1, 1], [0, 1], counts), torch.Generator())
            for counts in (None, torch.tensor([segments.shape[1], 100]))
        )
    assert torch.equal(first, second)
