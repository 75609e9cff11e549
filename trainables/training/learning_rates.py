"""Learning rates of the parts of a model: a share for each encoder, and decay from its last block to its first.

The decay by layer is that of Clark et al. 2020 (ELECTRA) and Bao et al. 2022 (BEiT).
"""

from typing import Any

import torch
from torch import nn

from trainables.networks.dual_encoder import DualEncoder
from trainables.trial import Trial

SHARE = "share"
"""Key of a group of the optimizer's parameters: their share of the schedule's learning rate."""


def group_by_rate(network: DualEncoder, trial: Trial) -> list[dict[str, Any]]:
    """Return the trained parameters of a trial's model as groups for an optimizer, one for each share of the schedule's
    learning rate. The first group has the share 1, and all parameters if the trial has the defaults.
    """
    shares = compute_rate_shares(network, trial)
    groups: dict[float, list[nn.Parameter]] = {1.0: []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(shares[name], []).append(parameter)
    return [{"params": parameters, SHARE: share} for share, parameters in groups.items()]


def compute_rate_shares(network: DualEncoder, trial: Trial) -> dict[str, float]:
    """Return the share of the schedule's learning rate of each parameter of a trial's model, by name: 1 for the
    projections and the temperature.

    In an encoder of n blocks, the last block has the encoder's share s, the first one s * decay^(n-1), the parameters
    that the network defines before its first block s * decay^n, and those after it, such as a last normalisation, s.
    """
    shares = dict.fromkeys((name for name, _ in network.named_parameters()), 1.0)
    for kind, share in (("audio", trial.audio_rate_share), ("text", trial.text_rate_share)):
        encoder: Any = network.get_submodule(kind)
        blocks = encoder.blocks
        number_of_block = {id(one): number for number, block in enumerate(blocks, 1) for one in block.parameters()}
        number = 0
        for name, parameter in encoder.named_parameters(prefix=kind):
            number = number_of_block.get(id(parameter), len(blocks) if number else 0)
            shares[name] = share * trial.layer_decay ** (len(blocks) - number)
    return shares


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the optimizer's next step to `rate`, and to the share of it that a group has."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[SHARE]
