"""The training noise of CompressAI's entropy models, drawn by sample."""

from compressai.entropy_models import EntropyModel
from torch import Tensor

from hybridflow.continuous import ContinuousCodec
from hybridflow.draws import Draws


class NoiseByDraws:
    """Lets the entropy model of every codec take its uniform noise from `draws`, set for every batch, instead of the
    global generator, which knows nothing of samples."""

    def __init__(self, *codecs: ContinuousCodec) -> None:
        self.draws: Draws | None = None
        for codec in codecs:
            self._replace_noise(codec.gaussian_conditional)

    def _replace_noise(self, model: EntropyModel) -> None:
        plain = type(model).quantize

        def quantize(inputs: Tensor, mode: str, means: Tensor | None = None) -> Tensor:
            if mode == "noise":
                return inputs + (self.draws.uniform(*inputs.shape[1:]) - 0.5)
            return plain(model, inputs, mode, means)

        model.quantize = quantize
