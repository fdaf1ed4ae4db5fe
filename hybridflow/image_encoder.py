"""Image to a latent map at 1/16 of the resolution: the shape of both E_vq and E_c."""

from torch import Tensor, nn

from hybridflow.layers import BottleneckBlock, Downsample, ResidualBlock, activation, conv1x1, conv3x3


class ImageEncoder(nn.Module):
    """Image (B,3,H,W) in [0,1], H and W multiples of 16 -> latent (B,C,H/16,W/16), unbounded.

    Pixels are unshuffled to 1/4 at once, so that no convolution runs at full resolution.

    Args:
        out_channels: C.
        widths: channels at 1/4, 1/8 and 1/16.
        depths: residual blocks at 1/4, 1/8 and 1/16.
    """

    def __init__(self, out_channels: int, widths: tuple[int, int, int], depths: tuple[int, int, int]) -> None:
        super().__init__()
        quarter, eighth, sixteenth = widths
        self.net = nn.Sequential(
            nn.PixelUnshuffle(4),
            conv3x3(48, quarter),
            *(ResidualBlock(quarter) for _ in range(depths[0])),
            Downsample(quarter, eighth),
            *(BottleneckBlock(eighth) for _ in range(depths[1])),
            Downsample(eighth, sixteenth),
            *(BottleneckBlock(sixteenth) for _ in range(depths[2])),
            activation(),
            conv1x1(sixteenth, out_channels),
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image - 0.5)
