"""Training losses: weighted L1 + LPIPS (AlexNet), rate, and cross-entropy at masked positions."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridflow.container import QUALITIES
from hybridflow.distributed import processes, sum_over_processes
from hybridflow.draws import Draws
from hybridflow.metrics import load_lpips

L1_WEIGHT, LPIPS_WEIGHT, GRID_WEIGHT = 4.0, 1.0, 0.5
GRID_PERIOD = 16
"""Pixels of an index: grids of 2, 4 and 8, which up-sampling leaves, repeat in it too."""
RATE_WEIGHT_LOWEST_QUALITY, RATE_WEIGHT_HIGHEST_QUALITY = 24.0, 0.5


class Distortion(nn.Module):
    """w1 * L1 + w2 * LPIPS-Alex (HybridFlow, section 3) + w3 * `grid_strength` per image.

    AlexNet's first layer strides by 4 and is blind to a grid of that period, so both images are shifted by 0 to 3
    pixels, and half of the time down-scaled, by the same random amounts, shared by the step, before LPIPS sees them.
    That alone leaves a grid: fine texture pleases LPIPS, and is cheapest to make at fixed places of the up-sampling.

    The weights are L1_WEIGHT (for images in [0,1]), LPIPS_WEIGHT and GRID_WEIGHT.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lpips = load_lpips().requires_grad_(False)

    def forward(self, x: Tensor, x_hat: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """x, x_hat (B,3,H,W) in [0,1] -> distortion (B,) and its three unweighted means."""
        l1 = (x - x_hat).abs().flatten(1).mean(1)
        lpips = self.lpips(*_shift_and_rescale(draws, 2 * x - 1, 2 * x_hat - 1)).flatten()
        grid = grid_strength(x, x_hat)
        distortion = L1_WEIGHT * l1 + LPIPS_WEIGHT * lpips + GRID_WEIGHT * grid
        return distortion, {name: t.mean().detach() for name, t in (("l1", l1), ("lpips", lpips), ("grid", grid))}


def grid_strength(x: Tensor, x_hat: Tensor) -> Tensor:
    """How unevenly x_hat's gradient energy, against x's, is spread over the phases of GRID_PERIOD: (B,), 0 if evenly.

    Args:
        x, x_hat: (B,3,H,W) in [0,1], the original and the decoded image, with sides of at least GRID_PERIOD + 1.
    """
    log_ratio = (_phase_energies(x_hat) / _phase_energies(x)).log()
    return log_ratio.var(-1, correction=0).mean(0)


def _phase_energies(image: Tensor) -> Tensor:
    """(B,3,H,W) -> (2,B,GRID_PERIOD): mean squared step between neighbours, of columns and of rows, at each phase.

    A step of a 8-bit level is added, so that a grid too faint to see counts little.
    """
    energies = []
    for side in (image, image.mT):
        columns = side.float().diff().square().mean((1, 2))
        whole = columns.shape[-1] // GRID_PERIOD * GRID_PERIOD
        energies.append(columns[:, :whole].unflatten(1, (-1, GRID_PERIOD)).mean(1) + 1 / 255**2)
    return torch.stack(energies)


def _shift_and_rescale(draws: Draws, *images: Tensor) -> list[Tensor]:
    top, left, rescaled, scale = draws.shared(4).tolist()
    images = [image[..., int(4 * top) :, int(4 * left) :] for image in images]
    if rescaled < 0.5:
        size = [round(side * (0.75 + 0.25 * scale)) for side in images[0].shape[-2:]]
        images = [F.interpolate(image, size, mode="bilinear", align_corners=False) for image in images]
    return images


def rate_weight(quality: Tensor) -> Tensor:
    """lambda of each quality 0..63, in units of distortion per bit per pixel: geometric in quality."""
    ratio = (RATE_WEIGHT_HIGHEST_QUALITY / RATE_WEIGHT_LOWEST_QUALITY) ** (1 / (QUALITIES - 1))
    return RATE_WEIGHT_LOWEST_QUALITY * ratio ** quality.float()


def bits(likelihoods: Tensor) -> Tensor:
    """-log2 of likelihoods (B,...) summed per sample -> (B,) bits."""
    return -likelihoods.float().log().flatten(1).sum(1) / math.log(2)


def masked_cross_entropy(logits: Tensor, indices: Tensor, sent: Tensor) -> Tensor:
    """Cross-entropy in nats averaged over the positions that were not sent (MaskGIT, Chang et al., 2022, eq. 1).

    Args:
        logits: (B,K,h,w).
        indices: (B,h,w) int64, the truth.
        sent: (B,h,w) bool; a sent position counts nothing and gets no gradient.

    Returns:
        A scalar; zero if every position was sent.
    """
    masked = ~sent
    total = F.cross_entropy(logits.permute(0, 2, 3, 1)[masked].float(), indices[masked], reduction="sum")
    return total / typical_count(masked)


def typical_count(chosen: Tensor) -> Tensor:
    """How many are chosen, of a bool mask, on average over the processes, and at least one in all: what sums are
    divided by so that the mean over processes is the mean over all their samples."""
    return sum_over_processes(chosen.sum().float()).clamp(min=1) / processes()


def masked_accuracy(logits: Tensor, indices: Tensor, sent: Tensor) -> Tensor:
    """Share of the positions that were not sent whose likeliest index is the true one: arguments as of
    `masked_cross_entropy`, a scalar."""
    return ((logits.argmax(1) == indices) & ~sent).sum() / typical_count(~sent)
