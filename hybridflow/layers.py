"""Convolutional blocks shared by the image encoders and the pixel decoders.

None of them normalises or looks further than its kernel, so every pixel network built from them has a bounded
receptive field and can be run tile by tile.
"""

import torch
from torch import Tensor, nn


def activation() -> nn.Module:
    return nn.LeakyReLU(0.1)


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def conv1x1(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around an identity; (B,C,H,W) -> (B,C,H,W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            activation(), conv3x3(channels, channels), activation(), conv3x3(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class BottleneckBlock(nn.Module):
    """1x1, 3x3 at half the width, 1x1 around an identity (ELIC, He et al., CVPR 2022, section 3.3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.body = nn.Sequential(
            activation(),
            conv1x1(channels, half),
            activation(),
            conv3x3(half, half),
            activation(),
            conv1x1(half, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Downsample(nn.Sequential):
    """Halve height and width without losing a sample: pixel-unshuffle, then a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(nn.PixelUnshuffle(2), conv1x1(4 * in_channels, out_channels))


class Upsample(nn.Sequential):
    """Double height and width: a 1x1 convolution, then pixel-shuffle.

    Channels-last stays so: CUDA's pixel-shuffle alone leaves it, and every residual block after it would convert anew.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(conv1x1(in_channels, 4 * out_channels), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        doubled = super().forward(x)
        return doubled if x.is_contiguous() else doubled.contiguous(memory_format=torch.channels_last)
