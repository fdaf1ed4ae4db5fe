"""What moves the weights: Muon for the matrices of hidden layers, AdamW for everything else."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from hybridflow.precision import computes_in_bfloat16
from hybridflow.training.extra import needed

COLOURS = 3
ADAMW_SHARE = 0.5
"""AdamW's learning rate over Muon's."""
MOMENTUM, WEIGHT_DECAY = 0.95, 0.01


def hidden_weights(model: nn.Module, num_codes: int) -> set[nn.Parameter]:
    """Weights of the convolutions whose outputs are not colours, and of the linear layers whose outputs are not logits
    of codewords."""
    convolutions = {layer.weight for layer in model.modules() if isinstance(layer, nn.Conv2d)}
    linear = {layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)}
    hidden = {weight for weight in convolutions if len(weight) != COLOURS}
    return hidden | {weight for weight in linear if len(weight) != num_codes}


class Muon(Optimizer):
    """Moves matrices along the nearest ones to their momentum whose singular values are all alike (Muon, Jordan et al.,
    2024; a kernel's positions count as inputs), by as much as AdamW would (Liu et al., arXiv 2502.16982, section 2.2).

    Those of one shape go together. One after the other, as timm's own go, they are some thirty small operators each,
    and a GPU waits for those to be launched.

    Raises:
        TrainingError: timm, whose iteration it is, is not installed.
    """

    def __init__(self, weights: Iterable) -> None:
        super().__init__(weights, {"lr": 0.0})
        self.timm = needed("timm.optim.muon")

    @torch.no_grad()
    def step(self) -> None:
        """Along the gradients that there are."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            gradients = [weight.grad for weight in weights]
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
            momenta = [self.state[weight]["momentum"] for weight in weights]
            torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
            updates = torch._foreach_lerp(gradients, momenta, MOMENTUM)  # Nesterov's
            torch._foreach_mul_(weights, 1 - group["lr"] * WEIGHT_DECAY)
            alike = defaultdict(list)
            for weight, update in zip(weights, updates):
                if not weight.is_contiguous():  # channels last
                    weight, update = (tensor.permute(0, 2, 3, 1) for tensor in (weight, update))
                matrix = weight.view(len(weight), -1)  # whose columns lie as in memory: nothing is copied
                alike[matrix.shape].append((matrix, update.reshape_as(matrix)))
            for shape, pairs in alike.items():
                moved, matrices = zip(*pairs)
                directions = self._orthogonal(torch.stack(matrices)).unbind()
                scale = self.timm.get_lr_scale(shape, "match_rms_adamw")
                torch._foreach_add_(moved, directions, alpha=-group["lr"] * scale)

    def _orthogonal(self, matrices: torch.Tensor) -> torch.Tensor:
        """(N,rows,columns) -> as they are, but with singular values near 1."""
        bf16 = matrices.dtype == torch.float32 and computes_in_bfloat16(matrices.device.type)
        dtype = torch.bfloat16 if bf16 else matrices.dtype
        coefficients = self.timm._COEFFICIENTS["quintic"]
        found = self.timm.zeropower_via_newtonschulz(matrices, len(coefficients), coefficients, dtype=dtype)
        return found.to(matrices.dtype).contiguous()


def optimisers(parameters: Iterable[nn.Parameter], hidden: set[nn.Parameter]) -> list[Optimizer]:
    """Muon for the `hidden` matrices, AdamW with Nesterov momentum for the other parameters, whichever there are.

    A group's learning rate, to be set at every step, is its "share" of the schedule's.

    Raises:
        TrainingError: timm is not installed.
    """
    groups = [], []
    for parameter in parameters:
        groups[parameter not in hidden].append(parameter)
    found: list[Optimizer] = []
    if groups[0]:
        found.append(Muon([{"params": groups[0], "share": 1.0}]))
    if groups[1]:
        adamw = needed("timm.optim.nadamw").NAdamW
        others = [{"params": groups[1], "share": ADAMW_SHARE}]
        found.append(adamw(others, betas=(0.9, 0.98), eps=1e-7, weight_decay=WEIGHT_DECAY))
    return found
