"""The bridging correction network: a replica of the codebook decoder that reads y^_c and corrects D_vq's features."""

from torch import Tensor, nn

from hybridflow.layers import conv1x1
from hybridflow.pixel_decoder import DecoderTrunk


class Correction(nn.Module):
    """D_corr: y^_c (B,M,h,w) -> what is added to D_vq's features at 1/16, 1/8 and 1/4 (HybridFlow, section 3).

    The joins are zero-initialised, as in ControlNet (Zhang et al., ICCV 2023): at step 0 nothing is corrected.
    """

    def __init__(self, latent_channels: int, widths: tuple[int, int, int], depths: tuple[int, int, int]) -> None:
        super().__init__()
        self.trunk = DecoderTrunk(latent_channels, widths, depths)
        self.joins = nn.ModuleList(conv1x1(width, width) for width in reversed(widths))
        for join in self.joins:
            nn.init.zeros_(join.weight)
            nn.init.zeros_(join.bias)

    def forward(self, y_hat: Tensor) -> list[Tensor]:
        return [join(feature) for join, feature in zip(self.joins, self.trunk(y_hat))]
