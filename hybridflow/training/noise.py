"""The training noise of CompressAI's entropy models, drawn by sample."""

from compressai.entropy_models import EntropyModel
from torch import Tensor

from hybridflow.continuous import ContinuousCodec
from hybridflow.draws import Draws


class NoiseByDraws:
    """Lets both entropy models of every codec take their uniform noise from `draws`, set for every batch, instead of the
    global generator, which knows nothing of samples."""

    def __init__(self, *codecs: ContinuousCodec) -> None:
        self.draws: Draws | None = None

        def of_y(shape: tuple[int, int, int, int]) -> Tensor:
            return self.draws.uniform(*shape[1:])

        def of_z(shape: tuple[int, int, int]) -> Tensor:  # (Z,1,B*h*w): channels first inside EntropyBottleneck
            noise = self.draws.uniform(shape[0], shape[2] // len(self.draws))
            return noise.transpose(0, 1).reshape(shape)

        for codec in codecs:
            _replace_noise(codec.gaussian_conditional, of_y)
            _replace_noise(codec.entropy_bottleneck, of_z)


def _replace_noise(model: EntropyModel, numbers) -> None:
    plain = type(model).quantize

    def quantize(inputs: Tensor, mode: str, means: Tensor | None = None) -> Tensor:
        if mode == "noise":
            return inputs + (numbers(inputs.shape) - 0.5)
        return plain(model, inputs, mode, means)

    model.quantize = quantize
