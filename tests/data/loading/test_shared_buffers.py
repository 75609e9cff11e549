"""A buffer is used again when nothing shares its memory any more."""

import torch

from data.loading.shared_buffers import SharedBuffers


def test_a_buffer_is_free_again_when_all_that_shares_its_memory_is_gone():
    buffers = SharedBuffers(3, 5, num_buffers=1)
    part = buffers.tensor(buffers.take(), 2)[1:]
    other = buffers.take()
    buffers.array(0, 2)[:] = 1
    buffers.array(other, 3)[:] = 2
    assert (part == 1).all() and part.shape == (1, 5)
    assert not buffers.free
    del part
    assert buffers.take() == 0
    assert torch.equal(buffers.tensor(other, 3), torch.full((3, 5), 2.0))
    assert buffers.free == [other]
