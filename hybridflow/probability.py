"""Hyper-synthesis and context models in training's floats, and what their frozen integers share with them.

They hold only what freezes to the integer arithmetic of `exact`: plain convolutions, ReLU, pixel-shuffle, and biases
chosen by quality and coding step; no normalisation, and a fan-in of at most 1,024.
"""

import math

import torch
from torch import Tensor, nn

from hybridflow.container import QUALITIES
from hybridflow.layers import conv1x1, conv3x3

LATENT_STEPS = 4
INDEX_STEPS = 4
MEAN_STEPS = 16
"""Means are multiples of 1/16: of y in the gained domain, of z in its own."""
SCALES = 64
SCALE_MIN, SCALE_MAX = 0.11, 16.0
ANCHORS = 8
"""Qualities, evenly spaced, of which vectors are learned."""
WIDTHS = 2.0 ** torch.linspace(-2, 2, 9)
"""Standard deviations, over that of a scale, of the Gaussians that its tables may mix."""


class QualityTable(nn.Module):
    """A learned vector for every quality 0..63, interpolated between `ANCHORS`: (B,) int64 -> (B,C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.anchors = nn.Parameter(torch.zeros(ANCHORS, channels))

    def forward(self, quality: Tensor) -> Tensor:
        position = quality.to(self.anchors.dtype) * ((len(self.anchors) - 1) / (QUALITIES - 1))
        below = position.floor().long().clamp(max=len(self.anchors) - 2)
        return torch.lerp(self.anchors[below], self.anchors[below + 1], (position - below)[:, None])


def latent_step_masks(channels: int, h: int, w: int, device=None) -> Tensor:
    """What is coded of y or z at each step: (LATENT_STEPS,C,h,w) bool.

    Channels fall into four groups, positions into four by the parities of row and column; at each step every group
    codes another position of each 2x2 cell, so that later steps see all four positions (after DCVC-DC's quadtree
    partition, Li et al., CVPR 2023, section 3.3).
    """
    order = torch.tensor([0, 3, 1, 2])
    group = torch.arange(channels) % 4
    parity = 2 * (torch.arange(h) % 2)[:, None] + (torch.arange(w) % 2)[None, :]
    masks = torch.stack([parity == order[(group + step) % 4][:, None, None] for step in range(LATENT_STEPS)])
    return masks.to(device, non_blocking=True)


def parity_map(table: Tensor, h: int, w: int) -> Tensor:
    """A vector a position of the 2x2 cell (4,C) -> the vector of every position (C,h,w)."""
    return table.T.reshape(-1, 2, 2).repeat(1, -(-h // 2), -(-w // 2))[:, :h, :w]


def scale_of(index: Tensor) -> Tensor:
    """Standard deviation, in the gained domain, of a (fractional) scale-table index in 0..SCALES-1."""
    return SCALE_MIN * torch.exp(index * (math.log(SCALE_MAX / SCALE_MIN) / (SCALES - 1)))


class HyperSynthesis(nn.Module):
    """z (B,Z,h/4,w/4), integers -> features (B,F,h,w) for the context model.

    h and w are multiples of 4 here; the caller crops.
    """

    def __init__(self, z_channels: int, width: int, features: int) -> None:
        super().__init__()
        self.inward = conv3x3(z_channels, width)
        self.quality = QualityTable(width)
        self.middle = nn.Sequential(
            nn.ReLU(), conv1x1(width, 4 * width), nn.PixelShuffle(2), nn.ReLU(), conv3x3(width, width), nn.ReLU()
        )
        self.outward = nn.Sequential(conv1x1(width, 4 * features), nn.PixelShuffle(2))

    def forward(self, z: Tensor, quality: Tensor) -> Tensor:
        return self.outward(self.middle(self.inward(z) + self.quality(quality)[..., None, None]))


class ContextModel(nn.Module):
    """What is decoded of a latent -> mean and scale of every symbol of it, one step after the other.

    Args:
        channels: of the latent: M of y, which is decoded given features, or Z of z, which comes first.
        width: of the network.
        features: channels of what else is known; None for nothing.
    """

    SCALE_SLOPE, SCALE_START = 16, 24
    """Scale-table index of what the last convolution gives."""

    def __init__(self, channels: int, width: int, features: int | None = None) -> None:
        super().__init__()
        self.channels = channels
        self.known = conv3x3(channels, width)
        if features is not None:
            self.features = conv1x1(features, width)
        self.quality = QualityTable(width)
        self.step = nn.Parameter(torch.zeros(LATENT_STEPS, 4, width))
        self.body = nn.Sequential(nn.ReLU(), conv1x1(width, width), nn.ReLU(), conv1x1(width, width), nn.ReLU())
        self.out = conv1x1(width, 2 * channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, known: Tensor, step: int, quality: Tensor, features: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """known (B,C,h,w), zero where not yet decoded, and features (B,F,h,w) if it was made for some -> means
        (B,C,h,w) in the domain of `known` and scale-table indices (B,C,h,w), fractional, unbounded."""
        bias = parity_map(self.step[step], *known.shape[-2:])
        hidden = self.known(known) + self.quality(quality)[..., None, None] + bias
        if features is not None:
            hidden = hidden + self.features(features)
        mean, scale = self.out(self.body(hidden)).chunk(2, 1)
        return mean, self.SCALE_SLOPE * scale + self.SCALE_START

    @staticmethod
    def raw_scale(index: float) -> float:
        """What the last convolution gives for a scale-table index."""
        return (index - ContextModel.SCALE_START) / ContextModel.SCALE_SLOPE
