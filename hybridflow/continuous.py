"""The continuous stream: a variable-rate transform codec with hyperprior and a four-step context model."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from compressai.entropy_models import GaussianConditional
from compressai.ops import LowerBound
from torch import Tensor, nn

from hybridflow.entropy import PRECISION, WEIGHT_BITS, share_counts
from hybridflow.exact import IntegerContextModel, IntegerLatentModel
from hybridflow.image_encoder import ImageEncoder
from hybridflow.layers import activation, conv3x3
from hybridflow.probability import (
    MEAN_STEPS,
    SCALE_MIN,
    SCALES,
    WIDTHS,
    ContextModel,
    HyperSynthesis,
    QualityTable,
    latent_step_masks,
    scale_of,
)

REACH = 39
"""Largest distance of a symbol to its mean, or to the integer below it, that the tables hold without an escape."""


def round_through(x: Tensor) -> Tensor:
    """Round; the gradient passes straight through."""
    return x + (x.round() - x).detach()


def on_grid(mean: Tensor) -> Tensor:
    """The nearest multiples of 1/MEAN_STEPS; the gradient passes straight through."""
    return round_through(mean * MEAN_STEPS) / MEAN_STEPS


def as_decoded(y: Tensor, mean: Tensor, coded: Tensor) -> Tensor:
    """y in whole distances from its mean, the gradient passing straight through; the mean where nothing is coded."""
    return torch.where(coded, round_through(y - mean) + mean, mean)


class Latent(NamedTuple):
    y_hat: Tensor
    """(B,M,h,w), gain undone: what the decoders read."""
    y_gained: Tensor
    """(B,M,h,w) in the gained domain, multiples of 1/16: what the index prior reads."""
    likelihoods: dict[str, Tensor]
    """Of "y" (B,M,h,w) and "z" (B,Z,h/4,w/4)."""


class HyperAnalysis(nn.Sequential):
    """y (B,M,h,w), h and w multiples of 4 -> z (B,Z,h/4,w/4)."""

    def __init__(self, channels: int, width: int, z_channels: int) -> None:
        super().__init__(
            conv3x3(channels, width),
            activation(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            activation(),
            nn.Conv2d(width, z_channels, 3, stride=2, padding=1),
        )


class ContinuousCodec(nn.Module):
    """E_c and the entropy model of y_c; the decoders of y^_c live elsewhere.

    Mean-scale hyperprior (Minnen et al., NeurIPS 2018) with a parallel context model and gain vectors (Cui et al.,
    CVPR 2021): y is multiplied by a gain before rounding and by an inverse gain after. z has a context model of its own
    in place of a density a channel: at these rates it can be a quarter of the stream.

    Args:
        channels: M of y_c.
        z_channels: of the hyper-latent at 1/64.
        width: of the hyper and context networks.
        encoder: widths and depths of the image encoder.

    Attributes:
        exact: hyper-synthesis and context models as frozen integers, which coders read; so does `forward` in eval mode,
            once they are frozen.
    """

    def __init__(self, channels: int, z_channels: int, width: int, encoder: dict) -> None:
        super().__init__()
        self.analysis = ImageEncoder(channels, **encoder)
        self.hyper_analysis = HyperAnalysis(channels, width, z_channels)
        self.hyper_synthesis = HyperSynthesis(z_channels, width, width)
        self.context = ContextModel(channels, width, width)
        self.hyper_prior = ContextModel(z_channels, z_channels)
        self.exact = IntegerLatentModel(channels, z_channels, width)
        self.log_gain = QualityTable(channels)
        self.log_inverse_gain = QualityTable(channels)
        ramp = torch.linspace(0.0, 2.0, len(self.log_gain.anchors))[:, None]
        with torch.no_grad():
            self.log_gain.anchors += ramp
            self.log_inverse_gain.anchors -= ramp
        self.gaussian_conditional = GaussianConditional(None, scale_bound=SCALE_MIN)
        self.index_floor = LowerBound(0.0)
        self.register_buffer("scale_counts", torch.zeros(MEAN_STEPS, SCALES, 2 * REACH + 2, dtype=torch.int32))

    @torch.no_grad()
    def bake_tables(self, shares: Tensor | None = None) -> None:
        """Turn what symbols of every scale, and of means between two integers, are taken to be into the integer tables
        that coders read: Gaussians, or mixtures of them.

        Args:
            shares: (SCALES,len(WIDTHS)) float64, adding up to 1, of Gaussians so many times as wide as the scale says
                (`hybridflow.training.tables`); all to that of width 1 by default.
        """
        if shares is None:
            shares = (WIDTHS == 1).double().expand(SCALES, -1)
        for sixteenths, counts in enumerate(self.scale_counts):
            pmf = torch.einsum("sn,nsk->sk", shares, gaussian_pmf(sixteenths / MEAN_STEPS))
            counts.copy_(_signed_tables(pmf))

    def gain(self, y: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        """y of the analysis -> gained y (B,M,h,w) and z (B,Z,ceil(h/4),ceil(w/4)), neither rounded."""
        y = y * self.log_gain(quality).exp()[..., None, None]
        h, w = y.shape[-2:]
        return y, self.hyper_analysis(F.pad(y, (0, -w % 4, 0, -h % 4)))

    def ungain(self, y_gained: Tensor, quality: Tensor) -> Tensor:
        """The inverse gain: the one float multiplication after the coder."""
        return y_gained * self.log_inverse_gain(quality).exp()[..., None, None]

    def forward(self, image: Tensor, quality: Tensor) -> Latent:
        """Image (B,3,H,W) in [0,1], quality (B,) int64 in 0..63 -> `Latent`.

        In training mode the likelihoods are those of y and z with uniform noise (Ballé et al., ICLR 2017) and what is
        decoded is rounded with a straight-through gradient; otherwise both are rounded, and symbols of the smallest
        scale of y are their means and cost nothing, as in `stream_coding.code_y`.
        """
        y, z = self.gain(self.analysis(image), quality)
        y, z = y.float(), z.float()
        z_hat = round_through(z)
        z_likelihoods = self._z_likelihoods(z, z_hat, quality)
        known, means, indices = self.quantise_y(y, z_hat, quality)
        if self.reads_exact:
            y_likelihoods = self._table_likelihoods(known - means, torch.zeros_like(means), indices)
        else:
            _, y_likelihoods = self.gaussian_conditional(y, self._scales(indices), means)
        y_likelihoods = y_likelihoods.masked_fill(~self._coded(indices), 1)
        return Latent(self.ungain(known, quality), known, {"y": y_likelihoods, "z": z_likelihoods})

    def quantise_y(self, y: Tensor, z_hat: Tensor, quality: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gained y (B,M,h,w), not rounded, and z as it is decoded -> y as it is decoded, its means and its scale-table
        indices, each as large as y; the gradient passes the rounding straight."""
        h, w = y.shape[-2:]
        features = self._features(z_hat, quality)[..., :h, :w]

        def decode(means: Tensor, indices: Tensor) -> Tensor:
            return as_decoded(y, means, self._coded(indices))

        return self._step_by_step(self.context, self.exact, decode, y, quality, features)

    def _z_likelihoods(self, z: Tensor, z_hat: Tensor, quality: Tensor) -> Tensor:
        """z (B,Z,hz,wz), as it is and rounded -> its likelihoods: unlike y, it is rounded to integers, whatever its
        means."""
        networks = self.hyper_prior, self.exact.hyper_prior
        _, means, indices = self._step_by_step(*networks, lambda *_: z_hat, z, quality)
        if self.reads_exact:
            below = means.floor()
            return self._table_likelihoods(z_hat - below, means - below, indices)
        density = self.gaussian_conditional
        values = density.quantize(z, "noise" if self.training else "dequantize")
        return density.likelihood_lower_bound(density._likelihood(values, self._scales(indices), means))

    def _table_likelihoods(self, distances: Tensor, fractions: Tensor, indices: Tensor) -> Tensor:
        """What the coder takes symbols for, escapes with what follows them.

        Args:
            distances: (B,C,h,w), whole, of y to its means, of z to the integers below them.
            fractions: by which means are over the integer that distances are counted from, multiples of 1/16 below 1.
            indices: of the scale table.
        """
        beyond = distances.abs() - REACH
        entry = torch.where(beyond > 0, 2 * REACH + 1, distances + REACH).long()
        counts = self.scale_counts[(fractions * MEAN_STEPS).long(), indices.long(), entry]
        escape_bits = torch.where(beyond > 0, 2 * beyond.clamp(min=1).log2().floor() + 2, 0)
        return counts / 2**PRECISION * torch.exp2(-escape_bits)

    @property
    def reads_exact(self) -> bool:
        return not self.training and self.exact.frozen

    def _features(self, z: Tensor, quality: Tensor) -> Tensor:
        if self.reads_exact:
            return self.exact.features(z.long(), quality)
        return self.hyper_synthesis(z, quality)

    def _step_by_step(
        self,
        context: ContextModel,
        exact: IntegerContextModel,
        decode: Callable[[Tensor, Tensor], Tensor],
        values: Tensor,
        quality: Tensor,
        *features: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """z or y (B,C,h,w) as it is decoded, its means and its scale-table indices, each as large as it.

        Args:
            context, exact: of the latent, as floats and frozen.
            decode: means and indices of a step -> what is decoded there.
            features: what else is known.
        """
        known, means, indices = (torch.zeros_like(values) for _ in range(3))
        for step, mask in enumerate(latent_step_masks(*values.shape[1:], values.device)):
            step_means, step_indices = self._distribution(context, exact, known, step, quality, *features)
            known = torch.where(mask, decode(step_means, step_indices), known)
            means, indices = torch.where(mask, step_means, means), torch.where(mask, step_indices, indices)
        return known, means, indices

    def _distribution(
        self,
        context: ContextModel,
        exact: IntegerContextModel,
        known: Tensor,
        step: int,
        quality: Tensor,
        *features: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Means, multiples of 1/16, and scale-table indices, both float32 and as large as what is known (B,C,h,w)."""
        if self.reads_exact:
            mean, index = exact.distribution((known * MEAN_STEPS).round().long(), step, quality, *features)
            return mean.float() / MEAN_STEPS, index.float()
        mean, index = (t.float() for t in context(known, step, quality, *features))
        return on_grid(mean), index

    def _scales(self, indices: Tensor) -> Tensor:
        return scale_of(self.index_floor(indices).clamp(max=SCALES - 1))

    def _coded(self, indices: Tensor) -> Tensor:
        return (indices.round() > 0) | self.training


def gaussian_pmf(mean: float) -> Tensor:
    """Probabilities (len(WIDTHS),SCALES,2R+1), in float64, of -R..R under Gaussians of this mean, of every width and
    scale; R is `REACH`."""
    edges = torch.arange(-REACH - 0.5, REACH + 1, dtype=torch.float64)
    scales = scale_of(torch.arange(SCALES, dtype=torch.float64))
    return torch.special.ndtr((edges - mean) / (WIDTHS.double()[:, None] * scales)[..., None]).diff(dim=-1)


def _signed_tables(pmf: Tensor) -> Tensor:
    """(n,2R+1) probabilities of -R..R -> (n,2R+2) counts, the last the escape's."""
    escape = (1 - pmf.sum(1, keepdim=True)).clamp(min=0)
    weights = (torch.cat([pmf, escape], 1) * 2**WEIGHT_BITS).round().long()
    return torch.from_numpy(share_counts(weights.numpy()))
