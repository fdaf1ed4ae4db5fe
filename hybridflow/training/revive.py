"""Wake the latent channels that rounding has silenced, before a codec is trained.

A channel of y_c whose gained values stay below a half is always its own mean: what reads it learns nothing of it, so it
never wakes by itself, and a codec trained at a low rate from the start keeps a handful of channels only.
"""

import math

import torch
from torch import Tensor, nn

from hybridflow.container import QUALITIES
from hybridflow.continuous import ContinuousCodec
from hybridflow.probability import SCALE_MAX, SCALE_MIN, SCALES

SILENT = 0.3
"""Standard deviation, in the gained domain at the middle quality, below which a channel counts as silent."""
AWAKE = 2.0
"""What a silent channel's standard deviation is set to."""


@torch.no_grad()
def revive_latents(codec: ContinuousCodec, synthesis: nn.Module, images: Tensor) -> None:
    """Scale silent channels up and let what reads y_c start them from zero weights: the gradient of those weights no
    longer vanishes, and noise is not read.

    That is for a codec at its start: in a trained one most channels are silent by this measure and say something all
    the same, by their means.

    Args:
        codec: whose channels they are.
        synthesis: its decoder, of a `trunk` as `hybridflow.pixel_decoder` has.
        images: (B,3,H,W) in [0,1], on which activity is measured.
    """
    quality = torch.full((len(images),), QUALITIES // 2, device=images.device)
    gained, _ = codec.gain(codec.analysis(images).float(), quality)
    deviation = gained.std((0, 2, 3))
    silent = deviation < SILENT
    last = codec.analysis.net[-1]
    scale = torch.where(silent, AWAKE / deviation.clamp(min=1e-6), 1.0)
    last.weight.mul_(scale[:, None, None, None])
    last.bias.mul_(scale)
    codec.log_inverse_gain.anchors[:, silent] = -codec.log_gain.anchors[:, silent]

    for reader in (codec.hyper_analysis[0], codec.context.known, synthesis.trunk.entries[0]):
        reader.weight[:, silent] = 0
    mean, log_scale = codec.context.out.weight.chunk(2)
    mean[silent], log_scale[silent] = 0, 0
    mean_bias, scale_bias = codec.context.out.bias.chunk(2)
    index = math.log(AWAKE / SCALE_MIN) / math.log(SCALE_MAX / SCALE_MIN) * (SCALES - 1)
    mean_bias[silent], scale_bias[silent] = 0, codec.context.raw_scale(index)
