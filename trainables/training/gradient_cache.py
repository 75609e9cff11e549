"""The gradients of a loss over a whole batch, while the activations of one part of it are held at a time.

The method of Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup": all parts are
embedded without keeping activations, the loss gives the gradient of each embedding, and each part is embedded once
more to send its own share of that gradient back. It costs a second forward pass.
"""

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from data.loading.batch import Batch

Outputs = tuple[Tensor, Tensor, Tensor]
"""Clips [L, D] and captions [L, D] of a part's L pairs, and the temperature."""

Forward = Callable[[int, Batch], Outputs]
"""A part's number and the part -> its outputs: the same ones each time, dropout included."""


def backward(
    forward: Forward, parts: Sequence[Batch], loss_of: Callable[[Outputs], Tensor], network: torch.nn.Module
) -> Tensor:
    """Add the gradients of `loss_of`, a function of all parts' outputs joined, to the network's; the loss is returned.

    With one part this is a plain forward and backward pass. A network that is wrapped for several ranks exchanges its
    gradients once, with the last part.
    """
    if len(parts) == 1:
        loss = loss_of(forward(0, parts[0]))
        loss.backward()
        return loss.detach()
    with torch.no_grad():
        outputs = [forward(number, part) for number, part in enumerate(parts)]
    audio_LD, text_LD = (torch.cat([each[index] for each in outputs]).requires_grad_() for index in (0, 1))
    temperature = outputs[0][2].clone().requires_grad_()
    loss = loss_of((audio_LD, text_LD, temperature))
    loss.backward()
    sizes = [len(part.captions) for part in parts]
    gradients = zip(gradient_of(audio_LD).split(sizes), gradient_of(text_LD).split(sizes), strict=True)
    for number, (part, own) in enumerate(zip(parts, gradients, strict=True)):
        is_last = number == len(parts) - 1
        alone = network if isinstance(network, DistributedDataParallel) and not is_last else None
        with alone.no_sync() if alone else contextlib.nullcontext():
            # Only the last part tells the temperature its gradient, which is that of all.
            of_temperature = gradient_of(temperature) if is_last else torch.zeros_like(temperature)
            every = zip(forward(number, part), [*own, of_temperature], strict=True)
            tensors, received = zip(*[pair for pair in every if pair[0].requires_grad], strict=True)
            torch.autograd.backward(tensors, received)
    return loss.detach()


def gradient_of(leaf: Tensor) -> Tensor:
    """What the loss's backward pass has left at a leaf."""
    assert leaf.grad is not None
    return leaf.grad
