"""Batches: their parts, and their way to a device."""

from dataclasses import fields

import pytest
import torch
from loading_cases import assert_same_pairs, load, pairs_of, single_pairs


@pytest.mark.parametrize("most", [1, 2, 3, 10])
def test_parts_of_a_batch_are_its_pairs_in_order_without_a_copy(most, split):
    for batch in load(pairs_of(split)):
        parts = batch.split(most)
        assert [len(part.captions) for part in parts[:-1]] == [most] * (len(parts) - 1)
        assert_same_pairs([pair for part in parts for pair in single_pairs(part)], single_pairs(batch))
        assert parts[0].segments.data_ptr() == batch.segments.data_ptr()


def test_a_batch_moves_as_a_whole(split):
    batch = load(pairs_of(split))[0]
    moved = batch.to(torch.device("meta"))
    tensors = {field.name for field in fields(batch) if isinstance(getattr(batch, field.name), torch.Tensor)}
    assert {name for name in tensors if getattr(moved, name).device.type == "meta"} == tensors
    assert moved.captions == batch.captions
