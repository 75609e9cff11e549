"""Learning rates by part: which parameter has which, what they do to a training, and that it can be interrupted."""

import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

from trainables.encoders.audio import cnn14, passt
from trainables.encoders.text import huggingface
from trainables.networks import dual_encoder
from trainables.records.checkpoint import MODEL_FILE, OPTIMIZER_FILE
from trainables.schedule import Schedule
from trainables.training.learning_rates import SHARE, compute_rate_shares, group_by_rate
from trainables.training.train import Callbacks, TrainingStart, train
from trainables.trial import RATE_SETTINGS, from_json, make_soup, to_json

SHARES = {"audio_rate_share": 0.5, "text_rate_share": 2.0, "layer_decay": 0.25}


def train_into(trial, store, folder, **start):
    """A training, with a checkpoint in `folder`/1 and so on after each epoch."""

    def report(metrics, snapshot):
        snapshot.write(folder / str(int(metrics["epoch"])))

    return train(trial, store, Callbacks(report), TrainingStart(**start))


@pytest.fixture(
    params=[
        # An encoder, its number of blocks, the names of their parameters, and the names of those before them.
        ("audio", "cnn", 2, r"^layers\.(\d+)\.", r"^layers\.[01]\."),
        ("audio", "cnn14", 3, r"^conv_block(\d+)\.", r"^bn0\."),
        ("audio", "passt", 3, r"^net\.blocks\.(\d+)\.", r"^net\.(cls_token|dist_token|.*pos_embed|patch_embed\.)"),
        ("text", "transformer", 3, r"^layers\.layers\.(\d+)\.", r"^(words\.|positions)"),
        ("text", "bert", 3, r"^model\.encoder\.layer\.(\d+)\.", r"^model\.embeddings\."),
    ],
    ids=lambda case: case[1],
)
def layered(request, trial, write_text_model, tmp_path):
    """A model, and the numbers that the blocks of one of its encoders have by the names of the parameters."""
    kind, family, count, block_pattern, before_pattern = request.param
    shape = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    encoders = {
        "cnn": lambda: trial.audio,
        "cnn14": lambda: replace(cnn14.VARIANTS["audioset"], pretrained=False, channels=(2, 4, 4), segment_s=1.0),
        "passt": lambda: replace(
            passt.VARIANTS["tiny"], front_end=trial.audio.front_end, num_frames=100, segment_s=2.0, width=24, depth=3
        ),
        "transformer": lambda: replace(trial.text, layers=3),
        "bert": lambda: huggingface.Config(str(write_text_model(tmp_path / "bert", "bert", ["a dog barks"], **shape))),
    }
    trial = replace(trial, **{kind: encoders[family]()}, **SHARES)
    network = dual_encoder.build(trial, ["a dog barks"])
    return trial, network, kind, count, block_pattern, before_pattern


def test_each_parameter_has_the_rate_of_its_block(layered):
    trial, network, kind, count, block_pattern, before_pattern = layered
    share = {"audio": 0.5, "text": 2.0}[kind]
    names = [name for name, _ in network.get_submodule(kind).named_parameters()]
    in_blocks = [name for name in names if re.search(block_pattern, name) and not re.search(before_pattern, name)]
    numbers = sorted({int(re.search(block_pattern, name)[1]) for name in in_blocks})
    assert len(numbers) == count
    expected = {}
    for name in names:
        if re.search(before_pattern, name):
            exponent = count
        elif name in in_blocks:
            exponent = count - 1 - numbers.index(int(re.search(block_pattern, name)[1]))
        else:
            exponent = 0
        expected[f"{kind}.{name}"] = share * 0.25**exponent
    assert len(set(expected.values())) == count + 1
    shares = compute_rate_shares(network, trial)
    assert {name: value for name, value in shares.items() if name.startswith(f"{kind}.")} == expected
    outside = {name: value for name, value in shares.items() if name.partition(".")[0] not in ("audio", "text")}
    assert outside == dict.fromkeys(
        [
            "signed_temperature",
            *(f"{part}_projection.{one}" for part in ("audio", "text") for one in ("weight", "bias")),
        ],
        1.0,
    )
    groups = group_by_rate(network, trial)
    assert {name: group[SHARE] for group in groups for name, one in network.named_parameters()
            if any(one is parameter for parameter in group["params"])} == shares  # fmt: skip
    assert groups[0][SHARE] == 1


def test_by_default_there_is_a_single_group_in_the_order_of_the_model(trial):
    network = dual_encoder.build(trial, ["a dog barks"])
    (group,) = group_by_rate(network, trial)
    assert group[SHARE] == 1
    assert [id(one) for one in group["params"]] == [id(one) for one in network.parameters()]


def test_steps_are_taken_with_the_schedules_rate_times_the_share(trial, store):
    """65 pairs in batches of 8: nine steps an epoch."""
    rates = []

    def note(optimizer, *_):
        rates.append({id(one): group["lr"] for group in optimizer.param_groups for one in group["params"]})

    hook = register_optimizer_step_pre_hook(note)
    shared, metrics = replace(trial, **SHARES, fixed_temperature=True), []
    network = train(shared, store, Callbacks(lambda *given: metrics.append(given[0])))
    hook.remove()
    shares = compute_rate_shares(network, shared)
    assert len(rates) == 18
    for step, rate_of in enumerate(rates):
        rate = trial.schedule.rate(step // 9 + step % 9 / 9)
        assert rate_of == {
            id(one): rate * shares[name] for name, one in network.named_parameters() if one.requires_grad
        }
    assert [epoch["learning_rate"] for epoch in metrics] == [
        trial.schedule.rate(epoch + 8 / 9) for epoch in range(2)
    ]  # as it is without shares


def test_the_first_step_moves_each_weight_by_its_share_of_what_it_would_move(trial, store):
    """Adam's first step is the rate times a number that the gradient determines."""
    one_step = replace(trial, batch_size=65, schedule=Schedule(1e-3, 1e-3, 1, warmup_epochs=0, final_epochs=0))
    still = replace(one_step, schedule=Schedule(0.0, 0.0, 1, warmup_epochs=0, final_epochs=0))
    start, plain, shared = (
        train(one, store, Callbacks(lambda *_: None)).state_dict()
        for one in (still, one_step, replace(one_step, **SHARES))
    )
    shares = compute_rate_shares(dual_encoder.build(trial, ["a dog barks"]), replace(trial, **SHARES))
    for name, share in shares.items():
        moved, expected = shared[name] - start[name], share * (plain[name] - start[name])
        torch.testing.assert_close(moved, expected, rtol=1e-3, atol=3e-7, msg=name)


def test_a_training_with_shares_goes_on_bit_for_bit(trial, store, tmp_path):
    shared = replace(trial, **SHARES)
    whole = train_into(shared, store, tmp_path / "whole")
    resumed = train_into(shared, store, tmp_path / "resumed", resume_from=tmp_path / "whole" / "1")
    for file in (MODEL_FILE, OPTIMIZER_FILE):
        expected, got = (load_file(tmp_path / name / "2" / file) for name in ("whole", "resumed"))
        assert expected.keys() == got.keys()
        assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in resumed.state_dict().items())


def test_fine_tunings_with_other_shares_make_a_soup(fine_tuning):
    parts = [fine_tuning, replace(fine_tuning, **SHARES), replace(fine_tuning, frozen_text=True, audio_rate_share=0.1)]
    soup = make_soup(parts)
    assert from_json(to_json(soup)) == soup
    assert to_json(fine_tuning).keys().isdisjoint(RATE_SETTINGS)
