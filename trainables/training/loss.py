"""The losses over the batch gathered from all ranks: NT-Xent, and the cross entropy with teachers' scores.

Shapes: B pairs of all ranks together, L pairs of one rank, D dimensions.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def nt_xent(audio_BD: Tensor, text_BD: Tensor, clips_B: Tensor, temperature: Tensor) -> Tensor:
    """Return the NT-Xent loss, the normalised temperature-scaled cross entropy (Chen et al. 2020), as a float32 scalar.
    `audio_BD` and `text_BD` are the embeddings of the clips and of the captions of B pairs, which must have norm 1.
    `clips_B` has a number for the clip of each pair.

    In the matrix of cosine / temperature with a row for each clip and a column for each caption, an entry is positive
    if both belong to the same clip, as in the code of the paper's authors. The loss is -(r + c) / 2, with r and c the
    means over all positive entries of the log-softmax along rows and along columns.
    """
    with torch.autocast(audio_BD.device.type, enabled=False):
        logits_BB = audio_BD.float() @ text_BD.float().T / temperature.float()
        positive_BB = clips_B[:, None] == clips_B[None, :]
        rows = logits_BB.log_softmax(dim=1)[positive_BB].mean()
        columns = logits_BB.log_softmax(dim=0)[positive_BB].mean()
        return -(rows + columns) / 2


def soft_cross_entropy(audio_BD: Tensor, text_BD: Tensor, targets_BB: Tensor, temperature: Tensor) -> Tensor:
    """Return the cross entropy of a student's scores in a batch with its teachers' as targets, a float32 scalar.
    `audio_BD` and `text_BD` are the student's embeddings of the clips and captions of B pairs, of norm 1; `targets_BB`
    are the teachers' logits, their cosines divided by their temperature, with a row for each clip.

    The loss is (r + c) / 2, with r the mean over rows of the cross entropy between the softmax of the teachers' logits
    and that of the student's cosines / temperature, and c the same along columns, as in the published code of CP-JKU's
    system for DCASE 2024 (Primus and Widmer 2024).
    """
    with torch.autocast(audio_BD.device.type, enabled=False):
        logits_BB = audio_BD.float() @ text_BD.float().T / temperature.float()
        losses = [
            -(targets_BB.softmax(dim) * logits_BB.log_softmax(dim)).sum(dim).mean()
            for dim in (1, 0)
        ]  # fmt: skip
        return (losses[0] + losses[1]) / 2


def gather_rows(local_LX: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the rows of all ranks, concatenated in the order of ranks: [B, X]. `local_LX` are this rank's rows.
    Gradients flow back to each rank's own rows.

    `counts` gives the number of rows to use from each rank, which may be one fewer than the rank has.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return local_LX[: counts[0]]
    longest = max(1, *counts)
    padded = torch.cat([local_LX, local_LX.new_zeros(longest - len(local_LX), *local_LX.shape[1:])])
    gathered = AllGather.apply(padded)
    return torch.cat([rows[:count] for rows, count in zip(gathered, counts, strict=True)])


class AllGather(torch.autograd.Function):
    """All-gather with gradients. Each rank gives a tensor of the same shape and receives a tuple with the tensors of
    all ranks; backward, it receives its own part of the gradient, times the number of ranks.

    Each rank computes the same loss over the same gathered batch, so all ranks have the same gradient and needn't
    exchange it. DDP then takes the mean of parameters' gradients over ranks, and the factor turns it into the sum: a
    step on several ranks equals a step on one rank with the joined batch.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors `local` of all ranks, in the order of ranks."""
        gathered = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, local.contiguous())
        return tuple(gathered)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the gradient of this rank's tensor: its own one of the `gradients`, times the number of ranks."""
        return gradients[dist.get_rank()] * dist.get_world_size()
