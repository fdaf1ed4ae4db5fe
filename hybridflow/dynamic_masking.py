"""Complexity-aware dynamic masking: the schedule of every region, chosen by distortion + lambda * rate."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridflow.losses import L1_WEIGHT, LPIPS_WEIGHT
from hybridflow.masking import REGION
from hybridflow.metrics import load_lpips


def error_map(x: Tensor, x_hat: Tensor, lpips: torch.nn.Module) -> Tensor:
    """Training's distortion of x_hat, pixel by pixel: (1,3,H,W) in [0,1] twice -> (1,1,H,W).

    Args:
        lpips: from `spatial_lpips`.
    """
    height, width = x.shape[-2:]
    pad = (0, max(32 - width, 0), 0, max(32 - height, 0))  # AlexNet's strides leave nothing of less
    x, x_hat = (F.pad(image, pad, mode="replicate") for image in (x, x_hat))
    l1 = (x - x_hat).abs().mean(1, keepdim=True)
    errors = L1_WEIGHT * l1 + LPIPS_WEIGHT * lpips(2 * x - 1, 2 * x_hat - 1)
    return errors[..., :height, :width]


def spatial_lpips() -> torch.nn.Module:
    """LPIPS-Alex that returns a map (B,1,H,W) instead of its mean."""
    module = load_lpips()
    module.spatial = True
    return module


def _region_sums(values: Tensor, side: int) -> Tensor:
    """(S,1,H,W) -> sums over regions of side x side (S,rows,cols), the last ones cut off."""
    height, width = values.shape[-2:]
    padded = F.pad(values, (0, -width % side, 0, -height % side))
    return F.avg_pool2d(padded, side)[:, 0] * side**2


def choose_regions(errors: Tensor, index_bits: Tensor, rate_weight: float) -> Tensor:
    """The cheapest schedule of every region.

    Args:
        errors: (4,1,16h,16w) `error_map` of the image decoded under each of `UNIFORM_SCHEDULES`.
        index_bits: (4,h,w) bits that each sent index costs under each of them, 0 where none is sent.
        rate_weight: lambda, in distortion per bit per pixel.

    Returns:
        (rows,cols) int64, indices into `UNIFORM_SCHEDULES`.
    """
    distortion = _region_sums(errors, 16 * REGION)
    rate = _region_sums(index_bits[:, None], REGION)
    return (distortion + rate_weight * rate).argmin(0)
