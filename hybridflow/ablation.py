"""Parts that only training and ablations use; they are kept in a checkpoint file of their own.

A part switched off after joint training is no fair baseline, so each baseline keeps the decoder it was trained with.
"""

from torch import Tensor, nn

from hybridflow.correction import Correction
from hybridflow.layers import activation, conv3x3
from hybridflow.model import Preset, continuous_codec
from hybridflow.pixel_decoder import PixelDecoder
from hybridflow.predictor import Predictor


class ContinuousDecoder(nn.Module):
    """y^_c (B,M,h,w) -> image (B,3,16h,16w), nominally in [0,1], not clamped: the hybrid's decoder without a codebook.

    D_vq and D_corr are there as in the hybrid; two convolutions on y^_c, which cost two thirds of what the predictor
    does, take the place of predictor and codewords. In all it takes 95 % (`tiny`) and 92 % (`base`) of the hybrid's
    multiplications.
    """

    def __init__(
        self, latent_channels: int, code_dim: int, predictor_dim: int, half_channels: int, decoder: dict
    ) -> None:
        super().__init__()
        hidden = 8 * predictor_dim
        self.entry = nn.Sequential(conv3x3(latent_channels, hidden), activation(), conv3x3(hidden, code_dim))
        self.pixel_decoder = PixelDecoder(code_dim, **decoder, half_channels=half_channels)
        self.correction = Correction(latent_channels, **decoder)

    def forward(self, y_hat: Tensor) -> Tensor:
        return self.pixel_decoder(self.entry(y_hat), self.correction(y_hat))


class Ablations(nn.Module):
    """Baselines beside the model.

    Attributes:
        codebook_decoder: D_vq as the tokenizer stage left it, then trained on for the codebook stream alone.
        continuous_alone, continuous_decoder: a continuous codec and a decoder of the hybrid's cost that were trained
            without the codebook stream, for as much as the hybrid knew when they started: continuous stream alone.
        light_synthesis: the decoder y^_c -> image that the continuous codec is first trained with, one replica of D_vq.
        blind_predictor: a predictor that does not see y^_c.
    """

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        decoder = {"widths": preset.decoder_widths, "depths": preset.decoder_depths}
        self.codebook_decoder = PixelDecoder(preset.code_dim, **decoder, half_channels=preset.half_channels)
        self.continuous_alone = continuous_codec(preset)
        self.continuous_decoder = ContinuousDecoder(
            preset.latent_channels, preset.code_dim, preset.predictor_dim, preset.half_channels, decoder
        )
        self.light_synthesis = PixelDecoder(preset.latent_channels, **decoder, half_channels=preset.half_channels)
        self.blind_predictor = Predictor(
            preset.latent_channels,
            preset.num_codes,
            preset.predictor_dim,
            preset.predictor_depth,
            preset.predictor_heads,
            guided=False,
        )
