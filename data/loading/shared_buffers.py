"""Reusable memory for batches, shared with forked loader processes.

A buffer is free again once no tensor shares its memory. Reuse avoids page clearing by the kernel, which costs more than
decoding 16-bit PCM: measured on two Zen 3 cores, 4 ms against 0.5 ms for a clip of 30 s. Forked processes decode
directly into the memory that the training process reads.
"""

import mmap
import weakref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FLOAT32_BYTES = 4


class SharedBuffers:
    """Pool of numbered buffers in shared memory, each for `num_rows` rows of `row_samples` float32 values.
    `num_buffers` are allocated at first, others when needed.
    """

    def __init__(self, num_rows: int, row_samples: int, num_buffers: int = 0) -> None:
        self.num_rows, self.row_samples = num_rows, row_samples
        self.memory = [self._allocate() for _ in range(num_buffers)]
        self.free = list(range(num_buffers))

    def take(self) -> int:
        """Return the number of a free buffer, which is then in use; allocate a buffer if none is free."""
        if not self.free:
            self.memory.append(self._allocate())
            return len(self.memory) - 1
        return self.free.pop()

    def array(self, buffer: int, num_rows: int) -> NDArray[np.float32]:
        """Return the first `num_rows` rows of a buffer as an array that shares its memory."""
        samples = np.frombuffer(self.memory[buffer], np.float32, num_rows * self.row_samples)
        return samples.reshape(num_rows, self.row_samples)

    def tensor(self, buffer: int, num_rows: int) -> Tensor:
        """Return the first `num_rows` rows of a buffer as a tensor that shares its memory. The buffer is free
        again once the tensor and all views of it have been deleted.
        """
        array = self.array(buffer, num_rows)
        weakref.finalize(array, self.free.append, buffer).atexit = False
        return torch.from_numpy(array)

    def _allocate(self) -> mmap.mmap:
        return mmap.mmap(-1, max(1, self.num_rows * self.row_samples) * FLOAT32_BYTES)
