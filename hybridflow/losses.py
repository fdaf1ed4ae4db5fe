"""Training losses: weighted L1 + LPIPS (AlexNet), rate, and cross-entropy at masked positions."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridflow.metrics import load_lpips
from hybridflow.container import QUALITIES

L1_WEIGHT, LPIPS_WEIGHT = 4.0, 1.0
RATE_WEIGHT_LOWEST_QUALITY, RATE_WEIGHT_HIGHEST_QUALITY = 24.0, 0.5


class Distortion(nn.Module):
    """w1 * L1 + w2 * LPIPS-Alex per image (HybridFlow, section 3).

    AlexNet's first layer strides by 4 and is blind to a grid of that period, so both images are shifted by 0 to 3
    pixels, and half of the time down-scaled, by the same random amounts before LPIPS sees them.

    w1 and w2 are L1_WEIGHT (for images in [0,1]) and LPIPS_WEIGHT.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lpips = load_lpips().requires_grad_(False)

    def forward(self, x: Tensor, x_hat: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """x, x_hat (B,3,H,W) in [0,1] -> distortion (B,) and its two unweighted means."""
        l1 = (x - x_hat).abs().flatten(1).mean(1)
        lpips = self.lpips(*_shift_and_rescale(2 * x - 1, 2 * x_hat - 1)).flatten()
        distortion = L1_WEIGHT * l1 + LPIPS_WEIGHT * lpips
        return distortion, {"l1": l1.mean().detach(), "lpips": lpips.mean().detach()}


def _shift_and_rescale(*images: Tensor) -> list[Tensor]:
    top, left = (int(v) for v in torch.randint(4, (2,)))
    images = [image[..., top:, left:] for image in images]
    if torch.rand(()) < 0.5:
        scale = float(torch.empty(()).uniform_(0.75, 1.0))
        size = [round(s * scale) for s in images[0].shape[-2:]]
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
    if not masked.any():
        return logits.sum() * 0.0
    return F.cross_entropy(logits.permute(0, 2, 3, 1)[masked].float(), indices[masked])
