"""Parts that only training and ablations use; they are kept in a checkpoint file of their own.

A part switched off after joint training is no fair baseline, so each baseline keeps the decoder it was trained with.
"""

from torch import nn

from hybridflow.model import Preset, continuous_codec
from hybridflow.pixel_decoder import PixelDecoder
from hybridflow.predictor import Predictor


class Ablations(nn.Module):
    """Baselines beside the model.

    Attributes:
        codebook_decoder: D_vq as the tokenizer stage left it: codebook stream alone.
        continuous_alone, light_synthesis: the continuous codec as its own stage left it, and the decoder y^_c -> image
            that was trained with it: continuous stream alone.
        blind_predictor: a predictor that does not see y^_c.
    """

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        decoder = {
            "widths": preset.decoder_widths,
            "depths": preset.decoder_depths,
            "half_channels": preset.half_channels,
        }
        self.codebook_decoder = PixelDecoder(preset.code_dim, **decoder)
        self.continuous_alone = continuous_codec(preset)
        self.light_synthesis = PixelDecoder(preset.latent_channels, **decoder)
        self.blind_predictor = Predictor(
            preset.latent_channels,
            preset.num_codes,
            preset.predictor_dim,
            preset.predictor_depth,
            preset.predictor_heads,
            guided=False,
        )
