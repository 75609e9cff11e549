"""Gradient caching: gradients of a loss over a batch, with the activations of one part of it in memory at a time.

This is the method of Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup". All
parts are embedded without keeping activations; the loss gives the gradient of each embedding; then each part is
embedded again, and the gradients of its embeddings are backpropagated. The method costs a second forward pass.
"""

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from data.loading.batch import Batch

Outputs = tuple[Tensor, Tensor, Tensor]
"""Embeddings of clips [L, D] and captions [L, D] of L pairs, and the temperature."""

Forward = Callable[[int, Batch], Outputs]
"""Function from a part's number and the part to its outputs; it returns the same outputs each time, dropout included.
"""


def embed_by_parts(forward: Forward, parts: Sequence[Batch]) -> Outputs:
    """Return the outputs of `forward` for all parts of a batch, concatenated and without a graph of activations. They
    are leaf tensors: the loss's backward pass leaves its gradients there for `backward_by_parts`.
    """
    with torch.no_grad():
        outputs = [forward(number, part) for number, part in enumerate(parts)]
    audio_LD, text_LD = (torch.cat([each[index] for each in outputs]).requires_grad_() for index in (0, 1))
    return audio_LD, text_LD, outputs[0][2].clone().requires_grad_()


def backward_by_parts(forward: Forward, parts: Sequence[Batch], outputs: Outputs, network: torch.nn.Module) -> None:
    """Embed the parts of a batch again with `forward`, one after the other, and backpropagate through the network the
    gradients that the loss left at `outputs`. They are added to the gradients of the network's parameters.

    If the network is wrapped in DDP, ranks exchange gradients once, with the last part.
    """
    audio_LD, text_LD, temperature_gradient = (gradient_of(output) for output in outputs)
    sizes = [len(part.captions) for part in parts]
    gradients = zip(audio_LD.split(sizes), text_LD.split(sizes), strict=True)
    for number, (part, gradient) in enumerate(zip(parts, gradients, strict=True)):
        is_last = number == len(parts) - 1
        unsynchronised = network if isinstance(network, DistributedDataParallel) and not is_last else None
        with unsynchronised.no_sync() if unsynchronised else contextlib.nullcontext():
            # The temperature's gradient is that of the batch, so it is added once, with the last part.
            output_gradients = (*gradient, temperature_gradient if is_last else torch.zeros_like(temperature_gradient))
            outputs_with_gradients = zip(forward(number, part), output_gradients, strict=True)
            tensors, gradients_of_part = zip(
                *[pair for pair in outputs_with_gradients if pair[0].requires_grad], strict=True
            )
            torch.autograd.backward(tensors, gradients_of_part)


def gradient_of(leaf: Tensor) -> Tensor:
    """Return the gradient that the loss's backward pass has left at a leaf tensor, which must have one."""
    assert leaf.grad is not None
    return leaf.grad
