"""The temperature as a learned parameter, and masks that a batch shares."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.loading.batch import NUM_MASK_DRAWS, Batch
from trainables.networks import dual_encoder
from trainables.records.checkpoint import MODEL_FILE, load_model
from trainables.schedule import Schedule
from trainables.training.loss import nt_xent
from trainables.training.train import Callbacks, TrainingStart, embed_part, train

CAPTIONS = ["a dog barks", "rain falls on a roof", "a bell rings"]
CONSTANT = Schedule(peak_rate=1e-3, final_rate=1e-3, epochs=1, warmup_epochs=0, final_epochs=0)


def train_once(trial, store, folder, **start):
    """The temperature of the checkpoint after the first epoch; the checkpoint is written to `folder`."""

    def write(metrics, snapshot):
        snapshot.write(folder)

    train(trial, store, Callbacks(write), TrainingStart(**start))
    return load_model(folder, trial).temperature.item()


def test_one_step_of_adam_moves_the_temperature_itself_or_its_logarithm(trial, store):
    """Adam's first step is the learning rate, in the direction of the gradient's sign."""
    for log_temperature in (False, True):
        network = dual_encoder.build(replace(trial, temperature=0.01, log_temperature=log_temperature), CAPTIONS)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        vectors = torch.nn.functional.normalize(torch.randn(8, 16, generator=torch.Generator().manual_seed(0)), dim=1)
        nt_xent(vectors, vectors.flip(0), torch.arange(8), network.temperature).backward()
        optimizer.step()  # the loss of wrong pairs falls with a higher temperature
        expected = 0.01 * torch.tensor(1e-3).exp() if log_temperature else 0.01 + 1e-3
        assert network.temperature.item() == pytest.approx(float(expected), rel=1e-4)


def test_a_parameter_below_zero_gives_the_loss_of_its_absolute_value(trial):
    network = dual_encoder.build(replace(trial, temperature=0.05), CAPTIONS)
    with torch.no_grad():
        network.signed_temperature.neg_()
    assert network.temperature.item() == pytest.approx(0.05)


@pytest.mark.parametrize("log_first", [True, False])
def test_a_model_opens_whichever_parameter_its_temperature_was_learned_by(trial, store, tmp_path, log_first):
    """Models of version 3 of the training have the logarithm, and a config without `log_temperature`."""
    first, second = (replace(trial, temperature=0.07, log_temperature=log) for log in (log_first, not log_first))
    train_once(first, store, tmp_path)
    weights, reopened = load_file(tmp_path / MODEL_FILE), load_model(tmp_path, second)
    assert ("log_temperature" in weights) == log_first
    assert reopened.temperature.item() == pytest.approx(load_model(tmp_path, first).temperature.item(), rel=1e-6)
    other = {name: tensor for name, tensor in weights.items() if not name.endswith("_temperature")}
    assert all(torch.equal(reopened.state_dict()[name], tensor) for name, tensor in other.items())
    save_file(other, tmp_path / MODEL_FILE)
    with pytest.raises(Exception, match="temperature"):
        load_model(tmp_path, second)


def test_a_fine_tuning_goes_on_with_the_learned_temperature_or_starts_with_its_own(trial, store, tmp_path):
    base = replace(trial, schedule=CONSTANT)
    learned = train_once(base, store, tmp_path / "base")
    assert learned != pytest.approx(base.temperature, rel=1e-3)
    tuned = replace(base, pretraining=base, fixed_temperature=True)
    assert train_once(tuned, store, tmp_path / "kept", pretrained=tmp_path / "base") == pytest.approx(learned)
    own = replace(tuned, temperature=0.03, reset_temperature=True)
    assert train_once(own, store, tmp_path / "own", pretrained=tmp_path / "base") == pytest.approx(0.03)


def test_an_interrupted_fine_tuning_keeps_the_temperature_that_it_has_learned(trial, store, tmp_path):
    base = replace(trial, schedule=replace(CONSTANT, epochs=2))
    tuned = replace(base, pretraining=base, temperature=0.03, reset_temperature=True)
    first, second = [], []
    train_once(base, store, tmp_path / "base")

    def keep(checkpoints):
        def write(metrics, snapshot):
            checkpoints.append(metrics["temperature"])
            snapshot.write(tmp_path / f"{len(checkpoints)}")

        return Callbacks(write)

    train(tuned, store, keep(first), TrainingStart(pretrained=tmp_path / "base"))
    train(tuned, store, keep(second), TrainingStart(pretrained=tmp_path / "base", resume_from=tmp_path / "1"))
    assert first[1:] == second


def masks_of_parts(trial, num_parts, step=0, rank=0):
    """The draws that the audio encoder gets for each segment of a batch of four."""
    network = dual_encoder.build(trial, CAPTIONS).train()
    segments = torch.zeros(4, round(trial.audio.segment_s * 32_000))
    batch = replace(
        Batch.without_captions(segments, [1] * 4, range(4)),
        mask_draws=torch.rand(4, NUM_MASK_DRAWS),
        captions=["rain"] * 4,
    )
    seen = []
    network.audio.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[1]))
    for number, part in enumerate(batch.split(4 // num_parts)):
        embed_part(network, trial, rank, step, number, part)
    return torch.cat(seen), batch.mask_draws


def test_a_shared_mask_is_that_of_all_segments_parts_and_ranks_and_changes_with_the_step(trial):
    shared = replace(trial, shared_mask=True)
    whole, _ = masks_of_parts(shared, 1)
    assert len(whole) == 4 and torch.equal(whole, whole[:1].expand(4, -1))
    for change in ({"num_parts": 2}, {"num_parts": 4}, {"num_parts": 1, "rank": 1}):
        assert torch.equal(masks_of_parts(shared, **change)[0], whole)
    assert not torch.equal(masks_of_parts(shared, 1, step=1)[0], whole)
    own, draws = masks_of_parts(trial, 2)
    assert torch.equal(own, draws)
