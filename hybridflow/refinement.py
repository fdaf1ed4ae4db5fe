"""Spend encoding time for a better file: y_c of one image, refined by gradient descent before it is coded.

The analysis gives one latent for any image; the descent finds a better one for this image, under the very loss that the
model was trained for (Campos et al., CVPR Workshops 2019; Yang et al., NeurIPS 2020). Decoder and format do not change.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from hybridflow.continuous import ContinuousCodec, as_decoded, on_grid
from hybridflow.draws import Draws
from hybridflow.exact import ACTIVATION_MAX, SHIFT, IntegerConv, IntegerLatentModel
from hybridflow.losses import Distortion, gaussian_bits, rate_weight
from hybridflow.precision import autocast
from hybridflow.predictor import WINDOW
from hybridflow.probability import MEAN_STEPS, SCALES, latent_step_masks, parity_map, scale_of
from hybridflow.tiling import Window, pixels_of, tiles

SMALLEST = 4
"""Side, in latents, of an image whose distortion can be measured: LPIPS and the spectra of grids need 64 pixels."""
RATE = 0.038
"""The learning rate, in the gained domain, times the square root of the steps."""
MOMENTUM, SQUARES = 0.6, 0.99
"""Decay of the averages of gradients and of their squares."""


class RelaxedLatentModel:
    """What the frozen integers of `IntegerLatentModel` say, in floats and without rounding, so that gradients pass."""

    def __init__(self, exact: IntegerLatentModel) -> None:
        self.step = exact.step.float() / 2**SHIFT
        layers = exact.known, exact.first, exact.second, exact.out
        self.known, self.first, self.second, self.out = map(_relaxed, layers)

    def distribution(self, known: Tensor, step: int, quality: int, features: Tensor) -> tuple[Tensor, Tensor]:
        """As of `IntegerLatentModel`, but known (B,M,h,w) in the gained domain, and the means too; indices are
        fractional."""
        total = features.float() / 2**SHIFT + self.known(known * MEAN_STEPS, quality)
        total = total + parity_map(self.step[step], *known.shape[2:])
        x = total.clamp(0, ACTIVATION_MAX)
        for layer in (self.first, self.second):
            x = layer(x).clamp(0, ACTIVATION_MAX)
        mean, index = self.out(x).chunk(2, 1)
        return mean / MEAN_STEPS, index.clamp(0, SCALES - 1)


def _relaxed(layer: IntegerConv) -> Callable[[Tensor, int], Tensor]:
    """The layer and the rescaling of its totals, as a float convolution of an input and a row of the bias."""
    scale = layer.multiplier.double()[:, None] / 2**SHIFT
    weight = (layer.weight.double() * scale).float().unflatten(1, (-1, layer.kernel, layer.kernel))
    bias = (layer.bias.double() / 2**SHIFT).float()
    return lambda x, row=0: F.conv2d(x, weight, bias[row], padding=layer.kernel // 2)


def refine(
    codec: ContinuousCodec,
    decode: Callable[[Tensor, Window], Tensor],
    image: Tensor,
    gained: Tensor,
    z: Tensor,
    quality: int,
    steps: int,
) -> Tensor:
    """Descend from y_c in the gained domain along the gradient of distortion + lambda * bits per pixel, with rounding
    passed straight through and z left as it is. Such a gradient never comes to rest, so the second half of the steps is
    averaged (Polyak and Juditsky, 1992). Pixels are made as in training, in bfloat16 where the device has it, and tile
    by tile if there are many.

    Args:
        codec: frozen.
        decode: y^_c (1,M,a,b) of a window of the latents, and the window -> its pixels (1,3,16a,16b).
        image: (1,3,16h,16w) in [0,1].
        gained: y_c (1,M,h,w), not rounded.
        z: (1,Z,ceil(h/4),ceil(w/4)), integers.
        quality: 0..63, whose lambda it is.
        steps: of the descent, each of a decoding and its gradient.

    Returns:
        (1,M,h,w), not rounded; `gained` itself where a side is under 64 pixels.
    """
    h, w = gained.shape[-2:]
    if min(h, w) < SMALLEST:
        return gained
    model, distortion = RelaxedLatentModel(codec.exact), _distortion(image.device)
    q = torch.tensor([quality], device=image.device)
    weight = float(rate_weight(q)) / image[0, 0].numel()
    features = codec.exact.features(z.long(), quality)[..., :h, :w]
    masks = latent_step_masks(gained.shape[1], h, w, gained.device)
    y, descent, average = gained.clone().requires_grad_(), _Descent(gained), torch.zeros_like(gained)
    for step in tqdm(range(steps), desc="refining", unit="step", leave=False, disable=None):
        rounded, bits = _round(model, features, masks, y, quality)
        y_hat = codec.ungain(rounded, q)
        leaf = y_hat.detach().requires_grad_()
        for window, core, part in tiles(h, w, WINDOW):
            with autocast(image.device):
                x, decoded = image[(..., *pixels_of(part))], decode(leaf[(..., *window)], window)
                x_hat = decoded[(..., *pixels_of(core))].float()
                shown, _ = distortion(x, x_hat, Draws(0, step, q))
            (x.numel() / image.numel() * shown.sum()).backward(inputs=[leaf])
        (gradient,) = torch.autograd.grad((y_hat * leaf.grad).sum() + weight * bits, y)
        rate = RATE / steps**0.5 * min(1.0, 2 * (1 - step / steps))
        y.data.sub_(rate * descent.direction(gradient))
        if step >= steps // 2:
            average += y.detach() / (steps - steps // 2)
    return average


@functools.cache
def _distortion(device: torch.device) -> Distortion:
    """One for all images: to make it takes a quarter of a second."""
    return Distortion().float().to(device)  # whatever PyTorch's default is


class _Descent:
    """Adam (Kingma and Ba, ICLR 2015) with the second moment factored over channels and positions (Adafactor, Shazeer
    and Stern, ICML 2018, section 3): a latent that matters less than others of its channel and place moves less."""

    def __init__(self, y: Tensor) -> None:
        self.step, self.mean = 0, torch.zeros_like(y)
        self.of_channel, self.of_position = torch.zeros_like(y[:, :, :1, :1]), torch.zeros_like(y[:, :1])

    def direction(self, gradient: Tensor) -> Tensor:
        """Where to go uphill from a gradient (1,M,h,w), about 1 in size."""
        self.step += 1
        square = gradient.square() + 1e-30  # where a channel is silent
        self.mean.lerp_(gradient, 1 - MOMENTUM)
        self.of_channel.lerp_(square.mean((2, 3), keepdim=True), 1 - SQUARES)
        self.of_position.lerp_(square.mean(1, keepdim=True), 1 - SQUARES)
        second = self.of_channel / self.of_channel.mean() * self.of_position / (1 - SQUARES**self.step)
        return self.mean / (1 - MOMENTUM**self.step) / second.sqrt()


def _round(
    model: RelaxedLatentModel, features: Tensor, masks: Tensor, y: Tensor, quality: int
) -> tuple[Tensor, Tensor]:
    """y (1,M,h,w) as it would be coded, with gradients, and its bits, a scalar."""
    known, bits = torch.zeros_like(y), y.new_zeros(())
    for step, mask in enumerate(masks):
        mean, index = model.distribution(known, step, quality, features)
        mean, coded = on_grid(mean), index.round() > 0
        bits = bits + gaussian_bits(y - mean, scale_of(index)).where(mask & coded, 0).sum()
        known = torch.where(mask, as_decoded(y, mean, coded), known)
    return known, bits
