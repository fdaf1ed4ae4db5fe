"""The networks whose outputs the entropy coder reads: hyper-synthesis, context model and index prior.

They hold only what freezes to integer arithmetic: plain convolutions, ReLU, pixel-shuffle, and biases chosen by
quality and coding step; no normalisation. Every fan-in is at most 1,024 (DESIGN: sums then stay exact in float32).
"""

import math

import torch
from torch import Tensor, nn

from hybridflow.container import QUALITIES
from hybridflow.layers import conv1x1, conv3x3

LATENT_STEPS = 4
INDEX_STEPS = 4
MEAN_STEPS = 16
"""Means are multiples of 1/16 in the gained domain."""
SCALES = 64
SCALE_MIN, SCALE_MAX = 0.11, 16.0


class QualityTable(nn.Module):
    """A learned vector for every quality 0..63, interpolated between a few anchors: (B,) int64 -> (B,C)."""

    def __init__(self, channels: int, anchors: int = 8) -> None:
        super().__init__()
        self.anchors = nn.Parameter(torch.zeros(anchors, channels))

    def forward(self, quality: Tensor) -> Tensor:
        position = quality.to(self.anchors.dtype) * ((len(self.anchors) - 1) / (QUALITIES - 1))
        below = position.floor().long().clamp(max=len(self.anchors) - 2)
        return torch.lerp(self.anchors[below], self.anchors[below + 1], (position - below)[:, None])


def latent_step_masks(channels: int, h: int, w: int, device=None) -> Tensor:
    """What is coded at each step: (LATENT_STEPS,C,h,w) bool.

    Channels fall into four groups, positions into four by the parities of row and column; at each step every group
    codes another position of each 2x2 cell, so that later steps see all four positions (after DCVC-DC's quadtree
    partition, Li et al., CVPR 2023, section 3.3).
    """
    order = torch.tensor([0, 3, 1, 2], device=device)
    group = torch.arange(channels, device=device) % 4
    parity = 2 * (torch.arange(h, device=device) % 2)[:, None] + (torch.arange(w, device=device) % 2)[None, :]
    return torch.stack([parity == order[(group + step) % 4][:, None, None] for step in range(LATENT_STEPS)])


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
    """Features and what is decoded of y -> mean and scale of every symbol of y, one step after the other."""

    def __init__(self, channels: int, features: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        self.known = conv3x3(channels, width)
        self.features = conv1x1(features, width)
        self.quality = QualityTable(width)
        self.step = nn.Parameter(torch.zeros(LATENT_STEPS, 4, width))
        self.body = nn.Sequential(nn.ReLU(), conv1x1(width, width), nn.ReLU(), conv1x1(width, width), nn.ReLU())
        self.out = conv1x1(width, 2 * channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor, known: Tensor, step: int, quality: Tensor) -> tuple[Tensor, Tensor]:
        """features (B,F,h,w); known (B,M,h,w) in the gained domain, zero where not yet decoded -> means (B,M,h,w) in
        the gained domain and scale-table indices (B,M,h,w), fractional, unbounded."""
        h, w = known.shape[-2:]
        bias = self.step[step].T.reshape(1, -1, 2, 2).repeat(1, 1, -(-h // 2), -(-w // 2))[..., :h, :w]
        hidden = self.known(known) + self.features(features) + self.quality(quality)[..., None, None] + bias
        mean, scale = self.out(self.body(hidden)).chunk(2, 1)
        return mean, 16 * scale + 24

    @staticmethod
    def raw_scale(index: float) -> float:
        """What the last convolution gives for a scale-table index."""
        return (index - 24) / 16


class IndexPrior(nn.Module):
    """y^ and the indices already decoded -> logits of the sent indices of the next step."""

    def __init__(self, latent_channels: int, num_codes: int, width: int, embedding: int) -> None:
        super().__init__()
        half = width // 2
        self.latent = nn.Sequential(
            conv3x3(latent_channels, width), nn.ReLU(), conv1x1(width, half), nn.ReLU(), conv3x3(half, width)
        )
        self.quality = QualityTable(width)
        self.embedding = nn.Embedding(num_codes, embedding)
        self.known = nn.Conv2d(embedding, width, 5, padding=2)
        self.step = nn.Parameter(torch.zeros(INDEX_STEPS, width))
        self.out = nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, num_codes))

    def features(self, y: Tensor, quality: Tensor) -> Tensor:
        """y (B,M,h,w) in the gained domain -> (B,P,h,w), the same for every step."""
        return self.latent(y) + self.quality(quality)[..., None, None]

    def logits(self, features: Tensor, indices: Tensor, known: Tensor, step: int, wanted: Tensor) -> Tensor:
        """Logits (N,K) of the `wanted` (B,h,w) bool positions, in raster order.

        Args:
            indices: (B,h,w) int64, read only where `known` (B,h,w) bool.
        """
        embedded = self.embedding(indices * known) * known[..., None].to(features.dtype)
        hidden = features + self.known(embedded.permute(0, 3, 1, 2))
        return self.out(hidden.permute(0, 2, 3, 1)[wanted] + self.step[step])
