"""What feeds the entropy coder: integer networks, integers in, integers and integer tables out.

Frozen from the trained networks of `continuous` and `index_prior` by `hybridflow.training.freeze` (after Jacob et al.,
CVPR 2018, section 2: integer matrix products, then fixed-point rescaling). Nothing here rounds in floating point, so
every machine, device, thread count and batch size gives the same integers.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridflow.entropy import share_counts
from hybridflow.probability import INDEX_STEPS, LATENT_STEPS, QUALITIES, SCALES, parity_map

SHIFT = 20
"""Totals of a layer are in units of 2**-SHIFT of what it gives."""
ACTIVATION_MAX = 127
Z_LIMIT, KNOWN_LIMIT = 127, 8191
"""Inputs are clamped to these magnitudes: z, and what is decoded of y or z in sixteenths."""
LOGIT_STEPS = 128
"""Logits of indices are in units of 1/128 nat."""
EXPONENTIALS = 16 * LOGIT_STEPS
"""Length of the baked table of exp(-d / LOGIT_STEPS); beyond it the exponential counts as zero."""
KNOWN_REACH = 2
"""The index prior sees known indices so many positions away, in rows and in columns."""


def rescale(total: Tensor) -> Tensor:
    """Totals -> the nearest integers, halves upwards."""
    return total + (1 << SHIFT - 1) >> SHIFT


def activate(total: Tensor) -> Tensor:
    """Totals -> 7-bit activations: `rescale`, then ReLU and saturation at once."""
    return rescale(total).clamp(0, ACTIVATION_MAX)


class IntegerConv(nn.Module):
    """Convolution with int8 weights (out, in * k * k), then an int32 multiplier (out,) and bias (rows, out).

    Products are summed as float64 matrix products of integers. Every sum stays far below 2**53, so they are exact in
    any order and on any device; float64 is touched neither by autocast nor by PyTorch's settings of matrix precision,
    and no convolution algorithm gets to choose.

    Args:
        rows: of the bias: 1, or one a quality.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, rows: int = 1) -> None:
        super().__init__()
        self.kernel = kernel
        self.register_buffer("weight", torch.zeros(out_channels, in_channels * kernel**2, dtype=torch.int8))
        self.register_buffer("multiplier", torch.zeros(out_channels, dtype=torch.int32))
        self.register_buffer("bias", torch.zeros(rows, out_channels, dtype=torch.int32))

    def forward(self, x: Tensor, row: Tensor | int = 0) -> Tensor:
        """x (B,in,...) int64, and a row of the bias for all or one each (B,) -> totals (B,out,...) int64."""
        x, size = x.double(), x.shape[2:]
        columns = x.flatten(2) if self.kernel == 1 else F.unfold(x, self.kernel, padding=self.kernel // 2)
        sums = (self.weight.double() @ columns).long()
        total = sums * self.multiplier[:, None] + self.bias[row][..., None]
        return total.unflatten(2, size)


class IntegerNetwork(nn.Module):
    """Made of `IntegerConv`s; all zero until frozen.

    Attributes:
        frozen: whether they hold something, noted when they change: to look would have training wait for the device.
    """

    out: IntegerConv

    def __init__(self) -> None:
        super().__init__()
        self.frozen = False
        self.register_load_state_dict_post_hook(IntegerNetwork.note)

    def note(self, *_) -> None:
        """Note whether there are integers; to be called after they were changed, loading apart."""
        self.frozen = bool(self.out.multiplier.any())

    def thaw(self) -> None:
        """Forget the integers: what they were frozen from is about to change."""
        for buffer in self.buffers():
            buffer.zero_()
        for network in self.modules():
            if isinstance(network, IntegerNetwork):
                network.note()


class IntegerContextModel(IntegerNetwork):
    """What is decoded of a latent, and features if there are some -> mean and scale of every symbol of it.

    Args:
        channels: of the latent.
        width: of the network.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.known = IntegerConv(channels, width, 3, rows=QUALITIES)
        self.register_buffer("step", torch.zeros(LATENT_STEPS, 4, width, dtype=torch.int32))
        self.first = IntegerConv(width, width)
        self.second = IntegerConv(width, width)
        self.out = IntegerConv(width, 2 * channels)

    def distribution(
        self, known: Tensor, step: int, quality: Tensor | int, features: Tensor | int = 0
    ) -> tuple[Tensor, Tensor]:
        """known (B,C,h,w) int64 in sixteenths, zero where not decoded; totals (B,W,h,w) of what else is known -> means
        (B,C,h,w) in sixteenths and scale-table indices (B,C,h,w), int64."""
        total = self.known(known.clamp(-KNOWN_LIMIT, KNOWN_LIMIT), quality) + features
        total = total + parity_map(self.step[step], *known.shape[2:])
        x = activate(self.second(activate(self.first(activate(total)))))
        mean, scale = rescale(self.out(x)).chunk(2, 1)
        return mean, scale.clamp(0, SCALES - 1)


class IntegerLatentModel(IntegerContextModel):
    """The context model of y, hyper-synthesis, which makes its features of z, and the context model of z itself.

    Args:
        channels: M of y_c.
        z_channels: Z of the hyper-latent, and width of the context model of z.
        width: W of the other networks.
    """

    def __init__(self, channels: int, z_channels: int, width: int) -> None:
        super().__init__(channels, width)
        self.inward = IntegerConv(z_channels, width, 3, rows=QUALITIES)
        self.upward = IntegerConv(width, 4 * width)
        self.middle = IntegerConv(width, width, 3)
        self.outward = IntegerConv(width, 4 * width)
        self.hyper_prior = IntegerContextModel(z_channels, z_channels)

    def features(self, z: Tensor, quality: Tensor | int) -> Tensor:
        """z (B,Z,hz,wz) int64, quality for all or (B,) -> totals (B,W,4hz,4wz) int64 for `distribution`."""
        x = activate(self.inward(z.clamp(-Z_LIMIT, Z_LIMIT), quality))
        x = activate(F.pixel_shuffle(self.upward(x), 2))
        return F.pixel_shuffle(self.outward(activate(self.middle(x))), 2)


class IntegerIndexPrior(IntegerNetwork):
    """y^_c and the indices already decoded -> logits of the sent indices of the next step.

    Args:
        channels: M of y_c.
        num_codes: K of the codebook.
        width: P of the network, even.
        embedding: E, numbers that stand for a known index.
    """

    def __init__(self, channels: int, num_codes: int, width: int, embedding: int) -> None:
        super().__init__()
        self.first = IntegerConv(channels, width, 3)
        self.second = IntegerConv(width, width // 2)
        self.third = IntegerConv(width // 2, width, 3, rows=QUALITIES)
        self.register_buffer("embedding", torch.zeros(num_codes, embedding, dtype=torch.int8))
        self.known = IntegerConv(embedding * (2 * KNOWN_REACH + 1) ** 2, width)
        self.register_buffer("step", torch.zeros(INDEX_STEPS, width, dtype=torch.int32))
        self.hidden = IntegerConv(width, width)
        self.out = IntegerConv(width, num_codes)
        self.register_buffer("exponential", torch.zeros(EXPONENTIALS, dtype=torch.int32))

    def features(self, y: Tensor, quality: Tensor | int) -> Tensor:
        """y^ (B,M,h,w) int64 in sixteenths, quality for all or (B,) -> totals (B,P,h,w) int64, for every step."""
        x = activate(self.first(y.clamp(-KNOWN_LIMIT, KNOWN_LIMIT)))
        return self.third(activate(self.second(x)), quality)

    def logits(self, features: Tensor, indices: Tensor, known: Tensor, step: int, places: Tensor) -> Tensor:
        """Logits (B,n,K) int64, in 1/LOGIT_STEPS nat, of some positions, the same of every image.

        Args:
            indices: (B,h,w) int64, read only where `known` (B,h,w) bool.
            places: (n,) int64, counted in raster order.
        """
        total = features.flatten(2).index_select(2, places)
        total = total + self.known(self._neighbours(indices, known, places)) + self.step[step][:, None]
        return rescale(self.out(activate(self.hidden(activate(total))))).mT

    def _neighbours(self, indices: Tensor, known: Tensor, places: Tensor) -> Tensor:
        """Embeddings of the known indices around each of the places: (B, 25 E, n), ordered as in a convolution."""
        unknown = len(self.embedding)
        embedding = F.pad(self.embedding, (0, 0, 0, 1))
        padded = F.pad(indices.where(known, unknown), 4 * [KNOWN_REACH], value=unknown)
        around = padded.unfold(1, 2 * KNOWN_REACH + 1, 1).unfold(2, 2 * KNOWN_REACH + 1, 1)
        row, column = places // indices.shape[2], places % indices.shape[2]
        return embedding[around[:, row, column].flatten(2)].mT.flatten(2).mT

    def counts(self, logits: Tensor) -> np.ndarray:
        """Logits (N,K) -> tables (N,K) int64 for the coder: exponentials, shared out in integers."""
        below = (logits.amax(1, keepdim=True) - logits).clamp(max=EXPONENTIALS)
        return share_counts(F.pad(self.exponential, (0, 1))[below].long().cpu().numpy())


class ProbabilityModel:
    """Tables and frozen networks that turn what is decoded into the distribution of what comes next, for one image.

    Attributes:
        channels: M of y_c.
        z_channels: Z of the hyper-latent.
        scale_counts: (MEAN_STEPS, SCALES, 2R+2) int64, a signed table for every sixteenth by which a mean is over an
            integer, and every standard deviation.
    """

    def __init__(self, latent: IntegerLatentModel, index_prior: IntegerIndexPrior, scale_counts: Tensor) -> None:
        self._latent, self._index_prior = latent, index_prior
        self.channels, self.z_channels = (len(m.out.weight) // 2 for m in (latent, latent.hyper_prior))
        self.scale_counts = scale_counts.cpu().numpy().astype(np.int64)

    def _batched(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array))[None].to(self._latent.step.device)

    def hyper_step(self, known: np.ndarray, step: int, quality: int) -> tuple[np.ndarray, np.ndarray]:
        """`known` of z (Z,hz,wz) int64 in sixteenths, zero where not decoded -> means (Z,hz,wz) in sixteenths and
        scale-table indices (Z,hz,wz), int64."""
        return self._distribution(self._latent.hyper_prior, known, step, quality)

    def hyper_features(self, z: np.ndarray, quality: int, h: int, w: int) -> Tensor:
        """z (Z,ceil(h/4),ceil(w/4)) int64 -> features of `latent_step`."""
        return self._latent.features(self._batched(z), quality)[..., :h, :w]

    def latent_step(
        self, known: np.ndarray, step: int, quality: int, features: Tensor
    ) -> tuple[np.ndarray, np.ndarray]:
        """`known` of y (M,h,w) int64 in sixteenths, zero where not decoded -> means (M,h,w) in sixteenths and
        scale-table indices (M,h,w), int64."""
        return self._distribution(self._latent, known, step, quality, features)

    def _distribution(
        self, model: IntegerContextModel, known: np.ndarray, step: int, quality: int, *features: Tensor
    ) -> tuple[np.ndarray, np.ndarray]:
        mean, scale = model.distribution(self._batched(known), step, quality, *features)
        return mean[0].cpu().numpy(), scale[0].cpu().numpy()

    def index_features(self, y: np.ndarray, quality: int) -> Tensor:
        """y^ (M,h,w) int64 in sixteenths -> features of `index_step`."""
        return self._index_prior.features(self._batched(y), quality)

    def index_step(
        self, features: Tensor, indices: np.ndarray, known: np.ndarray, step: int, places: np.ndarray
    ) -> np.ndarray:
        """indices (h,w) int64, read where `known` (h,w) bool -> counts (n,K) int64 of the positions `places` (n,)
        int64, counted in raster order."""
        arrays = (self._batched(array) for array in (indices, known))
        logits = self._index_prior.logits(features, *arrays, step, self._batched(places)[0])
        return self._index_prior.counts(logits[0])
