"""How unlike the textures of two images are, wherever in a window each detail lies.

A decoder of few bits cannot know where every leaf is. A distance of pixels or features at each place has it blur what
it does not know; one of their local statistics asks only that it looks alike.
"""

import torch.nn.functional as F
from torch import Tensor, nn

WINDOWS = (32, 64)
"""Pixels, each way, that the statistics are taken over."""

_STRIDES = (4, 8, 16, 16, 16)
"""Pixels between the places of AlexNet's five layers."""


def texture_distance(lpips: nn.Module, x: Tensor, x_hat: Tensor) -> Tensor:
    """Wasserstein distortion (Qiu et al., CISS 2024, section II) of AlexNet's features, as of Gaussians: squared
    differences of their local means and of their local standard deviations, in windows that overlap by half.

    Layers and channels weigh as in LPIPS. Features are divided by their root mean square over the whole original, and
    not each place by its own norm, as LPIPS has it: so flat places stay flat.

    Args:
        lpips: of `hybridflow.metrics.load_lpips`.
        x, x_hat: (B,3,H,W) in [-1,1], the original and the decoded image, with sides of at least 31 pixels.

    Returns:
        (B,), 0 for equal images.
    """
    layers = zip(*(lpips.net(lpips.scaling_layer(image)) for image in (x, x_hat)))
    distances = []
    for (feature, feature_hat), stride, head in zip(layers, _STRIDES, lpips.lins):
        feature, feature_hat = feature.float(), feature_hat.float()
        energy = feature.square().sum(1, keepdim=True).mean((2, 3), keepdim=True)
        scaled = [each / (energy + 1e-6).sqrt() for each in (feature, feature_hat)]
        for window in WINDOWS:
            (mean, deviation), (mean_hat, deviation_hat) = (_moments(each, window // stride) for each in scaled)
            squared = (mean - mean_hat).square() + (deviation - deviation_hat).square()
            distances.append(head(squared).mean((1, 2, 3)))
    return sum(distances) / len(WINDOWS)


def _moments(feature: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """(B,C,H,W) -> means and standard deviations over windows of side^2 places, or of all, each (B,C,H',W')."""
    side = min(side, *feature.shape[-2:])
    mean, square = (F.avg_pool2d(each, side, -(-side // 2)) for each in (feature, feature.square()))
    variance = square - mean.square()
    return mean, (variance.clamp(min=0) + 1e-6).sqrt()
