"""Latent map at 1/16 to pixels, level by level: the shape of D_vq and of its replica D_corr.

No pixel depends on a latent further than `hybridflow.tiling.REACH` pixels away.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from hybridflow.layers import BottleneckBlock, ResidualBlock, Upsample, activation, conv3x3


class DecoderTrunk(nn.Module):
    """Latent (B,C,h,w) -> features after the blocks of 1/16, 1/8 and 1/4.

    Args:
        in_channels: C.
        widths: channels at 1/4, 1/8 and 1/16 (the image encoder's order).
        depths: residual blocks at 1/4, 1/8 and 1/16.
    """

    def __init__(self, in_channels: int, widths: tuple[int, int, int], depths: tuple[int, int, int]) -> None:
        super().__init__()
        quarter, eighth, sixteenth = widths
        self.entries = nn.ModuleList(
            [conv3x3(in_channels, sixteenth), Upsample(sixteenth, eighth), Upsample(eighth, quarter)]
        )
        self.levels = nn.ModuleList(
            [
                nn.Sequential(*(BottleneckBlock(sixteenth) for _ in range(depths[2]))),
                nn.Sequential(*(BottleneckBlock(eighth) for _ in range(depths[1]))),
                nn.Sequential(*(ResidualBlock(quarter) for _ in range(depths[0]))),
            ]
        )

    def forward(self, latent: Tensor, corrections: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Features [(B,C16,h,w), (B,C8,2h,2w), (B,C4,4h,4w)], each with its `corrections` of the same shape added."""
        features, x = [], latent
        for level, (entry, blocks) in enumerate(zip(self.entries, self.levels)):
            x = blocks(entry(x))
            if corrections is not None:
                x = x + corrections[level]
            features.append(x)
        return features


class PixelHead(nn.Sequential):
    """Features at 1/4 (B,C,H/4,W/4) -> image (B,3,H,W), not clamped.

    A convolution follows each pixel-shuffle: LPIPS on AlexNet (first stride 4) is blind to a grid of period 4, and a
    bare shuffle learns to leave one.
    """

    def __init__(self, channels: int, half_channels: int) -> None:
        super().__init__(
            activation(),
            Upsample(channels, half_channels),
            activation(),
            conv3x3(half_channels, 12),
            nn.PixelShuffle(2),
            conv3x3(3, 3),
        )
        smooth = self[-1]
        nn.init.dirac_(smooth.weight)
        nn.init.constant_(smooth.bias, 0.5)


class PixelDecoder(nn.Module):
    """Latent (B,C,h,w) -> image (B,3,16h,16w), nominally in [0,1], not clamped. See `DecoderTrunk` for arguments."""

    def __init__(
        self, in_channels: int, widths: tuple[int, int, int], depths: tuple[int, int, int], half_channels: int
    ) -> None:
        super().__init__()
        self.trunk = DecoderTrunk(in_channels, widths, depths)
        self.head = PixelHead(widths[0], half_channels)

    def forward(self, latent: Tensor, corrections: Sequence[Tensor] | None = None) -> Tensor:
        return self.head(self.trunk(latent, corrections)[-1])
