"""Training losses: weighted pixel errors + LPIPS (AlexNet), rate, and cross-entropy at masked positions."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridflow.container import QUALITIES
from hybridflow.distributed import processes, sum_over_processes
from hybridflow.draws import Draws
from hybridflow.grids import typical_peaks, uneven_gradients
from hybridflow.metrics import load_lpips
from hybridflow.texture import texture_distance

CHARBONNIER_WEIGHT, MSE_WEIGHT, LPIPS_WEIGHT, UNEVEN_WEIGHT, PEAKS_WEIGHT = 2.0, 16.0, 1.0, 0.5, 0.1
_ROUNDED_BELOW = 1e-3
RATE_WEIGHT_LOWEST_QUALITY, RATE_WEIGHT_HIGHEST_QUALITY = 24.0, 0.5
_IGNORED = -1


def pixel_errors(x: Tensor, x_hat: Tensor) -> Tensor:
    """What every sample of x_hat counts for in the distortion, of images in [0,1] and any shape: L1, rounded near zero
    (Charbonnier et al., ICIP 1994) and squared error, which takes large ones more seriously. Half of what L1 alone
    would count, each; with L1 alone, as HybridFlow has it (section 3), PSNR is 0.15 to 0.3 dB lower."""
    squared = (x - x_hat).square()
    charbonnier = (squared + _ROUNDED_BELOW**2).sqrt() - _ROUNDED_BELOW
    return CHARBONNIER_WEIGHT * charbonnier + MSE_WEIGHT * squared


def plain_distortion(x: Tensor, x_hat: Tensor, lpips: nn.Module) -> Tensor:
    """`pixel_errors` + LPIPS-Alex of images (B,3,H,W) in [0,1] as they are, grids left out -> (B,): what weights and
    operating points are compared by."""
    return pixel_errors(x, x_hat).flatten(1).mean(1) + LPIPS_WEIGHT * lpips(2 * x - 1, 2 * x_hat - 1).flatten()


class Distortion(nn.Module):
    """`pixel_errors` + LPIPS-Alex (HybridFlow, section 3) + what shows of grids (`hybridflow.grids`), per image.

    AlexNet's first layer strides by 4 and is blind to a grid of that period, so both images are shifted by 0 to 3
    pixels, and half of the time down-scaled, by the same random amounts, shared by the step, before LPIPS sees them.
    That alone leaves a grid: fine texture pleases LPIPS, and is cheapest to make at fixed places of the up-sampling.

    The weights are LPIPS_WEIGHT, UNEVEN_WEIGHT and PEAKS_WEIGHT (for the nats, on average, between the typical peaks of
    both: if only higher ones counted, notches would take their place).

    Args:
        grid_weight: of grids, over the last two.
        texture_weight: of `texture_distance`, beside that, for decoders that may invent texture; of the same images as
            LPIPS.
        mse_weight: if it is not 0, all of that gives way to this much of the mean squared error, for baselines such as
            MLIC (Jiang et al., ACM MM 2023), which is trained so.
    """

    def __init__(self, grid_weight: float = 1.0, texture_weight: float = 0.0, mse_weight: float = 0.0) -> None:
        super().__init__()
        self.grid_weight, self.texture_weight = grid_weight, texture_weight
        self.mse_weight = mse_weight
        self.lpips = load_lpips().requires_grad_(False)

    def forward(self, x: Tensor, x_hat: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """x, x_hat (B,3,H,W) in [0,1] -> distortion (B,) and its unweighted means."""
        if self.mse_weight:
            mse = (x - x_hat).square().flatten(1).mean(1)
            return self.mse_weight * mse, {"mse": mse.mean().detach()}
        pixels = pixel_errors(x, x_hat).flatten(1).mean(1)
        rescaled = _shift_and_rescale(draws, 2 * x - 1, 2 * x_hat - 1)
        lpips = self.lpips(*rescaled).flatten()
        uneven = uneven_gradients(x, x_hat)
        peaks = (typical_peaks(x_hat) - typical_peaks(x)).abs().mean(1)
        grids = UNEVEN_WEIGHT * uneven + PEAKS_WEIGHT * peaks
        distortion = pixels + LPIPS_WEIGHT * lpips + self.grid_weight * grids
        terms = {"pixels": pixels, "lpips": lpips, "uneven": uneven, "peaks": peaks}
        if self.texture_weight:
            terms["texture"] = texture_distance(self.lpips, *rescaled)
            distortion = distortion + self.texture_weight * terms["texture"]
        return distortion, {name: term.mean().detach() for name, term in terms.items()}


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


def gaussian_bits(residual: Tensor, scale: Tensor) -> Tensor:
    """-log2 of the probability that a Gaussian of mean 0 and this standard deviation gives the interval of length 1
    around a residual, not rounded: of any shape, at most 30 bits each."""
    distance = residual.abs()
    near, far = (torch.erfc((distance + edge) / (math.sqrt(2) * scale)) for edge in (-0.5, 0.5))  # exact in the tail
    return -(0.5 * (near - far)).clamp(min=2**-30).log2()


def masked_cross_entropy(logits: Tensor, indices: Tensor, sent: Tensor) -> Tensor:
    """Cross-entropy in nats averaged over the positions that were not sent (MaskGIT, Chang et al., 2022, eq. 1).

    Args:
        logits: (B,K,h,w).
        indices: (B,h,w) int64, the truth.
        sent: (B,h,w) bool; a sent position counts nothing and gets no gradient.

    Returns:
        A scalar; zero if every position was sent.
    """
    targets = indices.masked_fill(sent, _IGNORED).flatten()
    logits = logits.permute(0, 2, 3, 1).flatten(0, 2).float()
    return F.cross_entropy(logits, targets, ignore_index=_IGNORED, reduction="sum") / typical_count(~sent)


def typical_count(chosen: Tensor) -> Tensor:
    """How many are chosen, of a bool mask, on average over the processes, and at least one in all: what sums are
    divided by so that the mean over processes is the mean over all their samples."""
    return sum_over_processes(chosen.sum().float()).clamp(min=1) / processes()


def masked_accuracy(logits: Tensor, indices: Tensor, sent: Tensor) -> Tensor:
    """Share of the positions that were not sent whose likeliest index is the true one: arguments as of
    `masked_cross_entropy`, a scalar."""
    return ((logits.argmax(1) == indices) & ~sent).sum() / typical_count(~sent)
