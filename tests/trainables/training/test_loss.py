"""NT-Xent against its definition. Gradients over several ranks are compared in test_two_ranks.py."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from trainables.training.loss import gather_rows, nt_xent

TEMPERATURE = torch.tensor(0.07)


def pairs(size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(normalize(torch.randn(size, 16, generator=generator), dim=-1) for _ in range(2))


def naive(audio: Tensor, text: Tensor, clips: list[int], temperature: float) -> float:
    logits = [[float(a.double() @ t.double()) / temperature for t in text] for a in audio]
    size = len(clips)
    rows, columns = [], []
    for i in range(size):
        for j in range(size):
            if clips[i] == clips[j]:
                rows.append(logits[i][j] - float(torch.tensor(logits[i]).logsumexp(0)))
                columns.append(logits[i][j] - float(torch.tensor([row[j] for row in logits]).logsumexp(0)))
    return -(sum(rows) / len(rows) + sum(columns) / len(columns)) / 2


@pytest.mark.parametrize(
    "clips", [[0, 1, 2, 3, 4, 5], [0, 1, 0, 2, 2, 2], [7, 7, 7, 7, 7, 7], [3]], ids=["unique", "some", "all", "one"]
)
def test_pairs_of_the_same_clip_are_positives_of_each_other(clips):
    audio, text = pairs(len(clips))
    loss = nt_xent(audio, text, torch.tensor(clips), TEMPERATURE)
    assert float(loss) == pytest.approx(naive(audio, text, clips, 0.07), abs=1e-5)


def test_with_every_clip_once_it_is_the_mean_of_the_cross_entropies_over_rows_and_columns():
    audio, text = pairs(20)
    logits, target = audio @ text.T / TEMPERATURE, torch.arange(20)
    expected = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(nt_xent(audio, text, target, TEMPERATURE), expected)


def test_which_numbers_stand_for_clips_does_not_matter_and_neither_does_the_order_of_pairs():
    audio, text = pairs(8)
    clips = torch.tensor([0, 1, 0, 2, 3, 3, 4, 5])
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    expected = nt_xent(audio, text, clips, TEMPERATURE)
    torch.testing.assert_close(nt_xent(audio[order], text[order], 100 - 7 * clips[order], TEMPERATURE), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_computed_in_float32_under_autocast(dtype):
    audio, text = (embeddings.to(dtype) for embeddings in pairs(12))
    clips = torch.arange(12)
    expected = nt_xent(audio.float(), text.float(), clips, TEMPERATURE)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent(audio, text, clips, TEMPERATURE.to(dtype).to(torch.float32))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, nt_xent(audio.float(), text.float(), clips, TEMPERATURE.to(dtype).float()))
    assert float(loss) == pytest.approx(float(expected), rel=0.01)


def test_the_temperature_gets_a_gradient():
    audio, text = pairs(6)
    temperature = TEMPERATURE.clone().requires_grad_()
    nt_xent(audio, text, torch.arange(6), temperature).backward()
    step = 1e-3
    higher, lower = (nt_xent(audio, text, torch.arange(6), TEMPERATURE + sign * step) for sign in (1, -1))
    assert float(temperature.grad) == pytest.approx(float(higher - lower) / (2 * step), rel=0.01)


def test_on_one_rank_gathering_changes_nothing():
    local = torch.randn(5, 3, requires_grad=True)
    gathered = gather_rows(local, [5])
    torch.testing.assert_close(gathered, local, rtol=0, atol=0)
    gathered.sum().backward()
    torch.testing.assert_close(local.grad, torch.ones(5, 3), rtol=0, atol=0)
