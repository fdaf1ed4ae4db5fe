"""What moves the weights: Muon for the matrices of hidden layers, AdamW for everything else."""

from collections.abc import Iterable
from functools import partial

import torch
from torch import nn
from torch.optim import Optimizer

from hybridflow.precision import computes_in_bfloat16
from hybridflow.training.extra import needed

COLOURS = 3
ADAMW_SHARE = 0.5
"""AdamW's learning rate over Muon's."""


def hidden_weights(model: nn.Module, num_codes: int) -> set[nn.Parameter]:
    """Weights of the convolutions and linear layers whose outputs are neither colours nor logits of codewords."""
    layers = (layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear))
    return {layer.weight for layer in layers if len(layer.weight) not in (COLOURS, num_codes)}


def muon(parameters: Iterable[nn.Parameter], hidden: set[nn.Parameter]) -> Optimizer:
    """An optimiser that moves the `hidden` matrices along the nearest ones to their momentum whose singular values are
    all alike (Muon, Jordan et al., 2024; a kernel's positions count as inputs), by as much as AdamW would (Liu et al.,
    arXiv 2502.16982, section 2.2), and the other parameters by AdamW with Nesterov momentum.

    The learning rate is left to be set at every step.

    Raises:
        TrainingError: timm, whose Muon it is, is not installed.
    """
    groups = [], []
    for parameter in parameters:
        groups[parameter not in hidden].append(parameter)
    timm_muon = needed("timm.optim.muon")
    [device] = {parameter.device.type for group in groups for parameter in group}
    if not computes_in_bfloat16(device):  # what timm multiplies in, unasked
        float32 = partial(timm_muon.zeropower_via_newtonschulz, dtype=torch.float32)
        timm_muon.zeropower_via_newtonschulz = float32
    return timm_muon.Muon(
        [{"params": groups[0], "use_muon": True}, {"params": groups[1], "use_fallback": True}],
        weight_decay=0.01,
        nesterov=True,
        betas=(0.9, 0.98),
        fallback_lr_scale=ADAMW_SHARE,
    )
