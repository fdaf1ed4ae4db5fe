"""The learned prior of the sent indices, which go through the entropy coder given y^_c and the indices before them."""

import torch
from torch import Tensor, nn

from hybridflow.entropy import PRECISION
from hybridflow.exact import KNOWN_REACH, IntegerIndexPrior
from hybridflow.layers import conv1x1, conv3x3
from hybridflow.probability import INDEX_STEPS, MEAN_STEPS, QualityTable
from hybridflow.stream_coding import RUN


class IndexPrior(nn.Module):
    """y^ and the indices already decoded -> how probable the sent indices of the next step are.

    Attributes:
        exact: its frozen integers, which coders read; estimates in eval mode do too, once it is frozen.
    """

    def __init__(self, latent_channels: int, num_codes: int, width: int, embedding: int) -> None:
        super().__init__()
        half = width // 2
        self.latent = nn.Sequential(
            conv3x3(latent_channels, width), nn.ReLU(), conv1x1(width, half), nn.ReLU(), conv3x3(half, width)
        )
        self.quality = QualityTable(width)
        self.embedding = nn.Embedding(num_codes, embedding)
        self.known = nn.Conv2d(embedding, width, 2 * KNOWN_REACH + 1, padding=KNOWN_REACH)
        self.step = nn.Parameter(torch.zeros(INDEX_STEPS, width))
        self.out = nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, num_codes))
        self.exact = IntegerIndexPrior(latent_channels, num_codes, width, embedding)

    @property
    def reads_exact(self) -> bool:
        return not self.training and self.exact.frozen

    def features(self, y: Tensor, quality: Tensor) -> Tensor:
        """y (B,M,h,w) in the gained domain -> (B,P,h,w), the same for every step."""
        if self.reads_exact:
            return self.exact.features((y * MEAN_STEPS).round().long(), quality)
        return self.latent(y) + self.quality(quality)[..., None, None]

    def likelihoods(self, features: Tensor, indices: Tensor, known: Tensor, step: int, places: Tensor) -> Tensor:
        """Probability (B,n) of the index at each of some positions, the same of every image; once frozen, what the
        coder takes it for, which is never under its smallest count.

        Args:
            indices: (B,h,w) int64; what comes before a place is what is `known`, (B,h,w) bool.
            places: (n,) int64, counted in raster order.
        """
        if self.reads_exact:
            runs = [self._coded(features, indices, known, step, run) for run in places.split(RUN)]
            return torch.cat(runs, 1)
        embedded = self.embedding(indices * known) * known[..., None].to(features.dtype)
        hidden = features + self.known(embedded.permute(0, 3, 1, 2))
        hidden = hidden.flatten(2).index_select(2, places).mT + self.step[step]
        logits = self.out(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])
        return _at(logits.float().softmax(2), indices, places)

    def _coded(self, features: Tensor, indices: Tensor, known: Tensor, step: int, places: Tensor) -> Tensor:
        logits = self.exact.logits(features, indices, known, step, places)
        counts = torch.from_numpy(self.exact.counts(logits.flatten(0, 1))).to(logits.device)
        return _at(counts.view_as(logits), indices, places) / 2**PRECISION


def _at(table: Tensor, indices: Tensor, places: Tensor) -> Tensor:
    """What a table (B,n,K) of some places (n,) holds for the indices (B,h,w) there: (B,n)."""
    return table.gather(2, indices.flatten(1).index_select(1, places)[..., None])[..., 0]
