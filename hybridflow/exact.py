"""What feeds the entropy coder: integers in, integers and integer tables out.

`ProbabilityModel` is the interface that the stream coding sees. Until the probability networks are frozen to integer
arithmetic, `Float64Probability` fills it by running them in float64 on the CPU with one thread, and rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from hybridflow.continuous import ContinuousCodec
from hybridflow.entropy import quantise_pmf
from hybridflow.probability import MEAN_STEPS, SCALES, IndexPrior


class ProbabilityModel(Protocol):
    """Tables and networks that turn what is decoded into the distribution of what comes next.

    Attributes:
        channels: M of y_c.
        z_counts: (Z, 2R+2) int64, a signed table a channel of z.
        scale_counts: (SCALES, 2R+2) int64, a signed table a standard deviation.
    """

    channels: int
    z_counts: np.ndarray
    scale_counts: np.ndarray

    def hyper_features(self, z: np.ndarray, quality: int, h: int, w: int) -> Tensor:
        """z (Z,ceil(h/4),ceil(w/4)) int64 -> features of `latent_step`."""

    def latent_step(
        self, features: Tensor, known: np.ndarray, step: int, quality: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """`known` (M,h,w) int64 in sixteenths, zero where not decoded -> means (M,h,w) in sixteenths and scale-table
        indices (M,h,w), int64."""

    def index_features(self, y: np.ndarray, quality: int) -> Tensor:
        """y^ (M,h,w) int64 in sixteenths -> features of `index_step`."""

    def index_step(
        self, features: Tensor, indices: np.ndarray, known: np.ndarray, step: int, wanted: np.ndarray
    ) -> np.ndarray:
        """indices (h,w) int64, read where `known` (h,w) bool -> counts (n,K) int64 of the `wanted` positions, in
        raster order."""


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)


def _batched(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))[None]


class Float64Probability(nn.Module):
    """`ProbabilityModel` of trained parts whose tables are baked (`ContinuousCodec.bake_tables`): float64 copies."""

    def __init__(self, continuous: ContinuousCodec, index_prior: IndexPrior) -> None:
        super().__init__()
        self.channels = continuous.context.channels
        self.z_counts = continuous.z_counts.cpu().numpy().astype(np.int64)
        self.scale_counts = continuous.scale_counts.cpu().numpy().astype(np.int64)
        self._synthesis = deepcopy(continuous.hyper_synthesis).cpu().double()
        self._context = deepcopy(continuous.context).cpu().double()
        self._prior = deepcopy(index_prior).cpu().double()

    def hyper_features(self, z: np.ndarray, quality: int, h: int, w: int) -> Tensor:
        with _one_thread():
            return self._synthesis(_batched(z).double(), torch.tensor([quality]))[..., :h, :w]

    def latent_step(
        self, features: Tensor, known: np.ndarray, step: int, quality: int
    ) -> tuple[np.ndarray, np.ndarray]:
        with _one_thread():
            mean, scale = self._context(features, _batched(known).double() / MEAN_STEPS, step, torch.tensor([quality]))
            return (
                (mean[0] * MEAN_STEPS).round().long().numpy(),
                scale[0].round().clamp(0, SCALES - 1).long().numpy(),
            )

    def index_features(self, y: np.ndarray, quality: int) -> Tensor:
        with _one_thread():
            return self._prior.features(_batched(y).double() / MEAN_STEPS, torch.tensor([quality]))

    def index_step(
        self, features: Tensor, indices: np.ndarray, known: np.ndarray, step: int, wanted: np.ndarray
    ) -> np.ndarray:
        with _one_thread():
            logits = self._prior.logits(features, _batched(indices), _batched(known), step, _batched(wanted))
            return quantise_pmf(logits.softmax(1).numpy())
