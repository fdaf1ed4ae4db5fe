"""Complexity-aware dynamic masking: the schedule of every region, chosen by distortion + lambda * rate."""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hybridflow.losses import LPIPS_WEIGHT, pixel_errors
from hybridflow.masking import REGION
from hybridflow.metrics import load_lpips
from hybridflow.region_prior import RegionPrior

REGION_BITS, FREE_BITS = 2, 96
"""The schedules take at most so many bits a region, or so many in all if that is more."""


def error_map(x: Tensor, x_hat: Tensor, lpips: torch.nn.Module) -> Tensor:
    """Training's distortion of x_hat, pixel by pixel: (1,3,H,W) in [0,1] twice -> (1,1,H,W).

    Args:
        lpips: from `spatial_lpips`.
    """
    height, width = x.shape[-2:]
    pad = (0, max(32 - width, 0), 0, max(32 - height, 0))  # AlexNet leaves nothing of less than 31
    x, x_hat = (F.pad(image, pad, mode="replicate") for image in (x, x_hat))
    errors = pixel_errors(x, x_hat).mean(1, keepdim=True) + LPIPS_WEIGHT * lpips(2 * x - 1, 2 * x_hat - 1)
    return errors[..., :height, :width]


@functools.cache
def spatial_lpips(device: torch.device) -> torch.nn.Module:
    """LPIPS-Alex that returns a map (B,1,H,W) instead of its mean."""
    module = load_lpips().to(device)
    module.spatial = True
    return module


def _region_sums(values: Tensor, side: int) -> Tensor:
    """(S,1,H,W) -> sums over regions of side x side (S,rows,cols), the last ones cut off."""
    height, width = values.shape[-2:]
    padded = F.pad(values, (0, -width % side, 0, -height % side))
    return F.avg_pool2d(padded, side)[:, 0] * side**2


def choose_regions(errors: Tensor, index_bits: Tensor, rate_weight: float) -> np.ndarray:
    """The cheapest schedule of every region, one after the other, each given those before it.

    The rate is that of the sent indices and of the schedules themselves. Schedules that would take more than their
    bound (`REGION_BITS`) are chosen again at twice the price of their bits, until they do not.

    Args:
        errors: (4,1,16h,16w) `error_map` of the image decoded under each of `UNIFORM_SCHEDULES`.
        index_bits: (4,h,w) bits that each sent index costs under each of them, 0 where none is sent.
        rate_weight: lambda, in distortion per bit per pixel.

    Returns:
        (rows,cols) int64, indices into `UNIFORM_SCHEDULES`.
    """
    distortion = _region_sums(errors, 16 * REGION)
    costs = (distortion + rate_weight * _region_sums(index_bits[:, None], REGION)).double().cpu().numpy()
    bound = max(REGION_BITS * costs[0].size, FREE_BITS)
    for doublings in range(64):
        regions, bits = _one_by_one(costs, rate_weight * 2**doublings)
        if bits <= bound:
            break
    return regions


def _one_by_one(costs: np.ndarray, price: float) -> tuple[np.ndarray, float]:
    """Each region's cheapest schedule if its bits are charged at `price`: costs (4,rows,cols) -> regions (rows,cols),
    and the bits of all."""
    prior, bits = RegionPrior(costs.shape[2]), 0.0
    for cost in costs.reshape(len(costs), -1).T:
        counts = prior.counts()
        own = np.log2(counts.sum() / counts)
        prior.append(int(np.argmin(cost + price * own)))
        bits += own[prior.regions[-1]]
    return np.array(prior.regions).reshape(costs.shape[1:]), bits
