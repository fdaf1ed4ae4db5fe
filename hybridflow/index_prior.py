"""The learned prior of the sent indices, which go through the entropy coder given y^_c and the indices before them."""

import torch
from torch import Tensor, nn

from hybridflow.entropy import PRECISION
from hybridflow.exact import KNOWN_REACH, IntegerIndexPrior
from hybridflow.layers import conv1x1, conv3x3
from hybridflow.probability import INDEX_STEPS, MEAN_STEPS, QualityTable


class IndexPrior(nn.Module):
    """y^ and the indices already decoded -> probabilities of the sent indices of the next step.

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

    def probabilities(self, features: Tensor, indices: Tensor, known: Tensor, step: int, places: Tensor) -> Tensor:
        """Probabilities (B,n,K) of the indices at some positions, the same of every image; once frozen, what the coder
        takes them for, which is never under its smallest count.

        Args:
            indices: (B,h,w) int64, read only where `known` (B,h,w) bool.
            places: (n,) int64, counted in raster order.
        """
        if self.reads_exact:
            logits = self.exact.logits(features, indices, known, step, places)
            counts = torch.from_numpy(self.exact.counts(logits.flatten(0, 1))).to(logits.device)
            return counts.view_as(logits) / 2**PRECISION
        embedded = self.embedding(indices * known) * known[..., None].to(features.dtype)
        hidden = features + self.known(embedded.permute(0, 3, 1, 2))
        hidden = hidden.flatten(2).index_select(2, places).mT + self.step[step]
        return self.out(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2]).float().softmax(2)
