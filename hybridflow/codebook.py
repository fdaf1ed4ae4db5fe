"""The vector quantiser: y_vq to the index of its nearest codeword, learned by moving averages."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hybridflow.distributed import from_first_process, processes, rank, sum_over_processes
from hybridflow.draws import Draws


DECAY = 0.99
"""Of the moving averages."""
RESTART_BELOW = 0.02
"""A codeword whose average count falls under this share of an even one is restarted."""
ITERATIONS = 10
"""Of k-means."""


class Quantised(NamedTuple):
    codes: Tensor
    """Nearest codewords (B,C,h,w); in training the gradient passes straight through to the input."""
    indices: Tensor
    """(B,h,w) int64."""
    commitment: Tensor
    """Mean squared distance of the input to its (detached) codewords, a scalar."""


class Codebook(nn.Module):
    """Nearest-codeword quantiser (VQ-VAE, van den Oord et al., 2017, section 3; moving averages: appendix A.1).

    In training mode each call moves the codewords towards the mean of what chose them, in all processes, and restarts
    codewords that are hardly chosen any more at random inputs of the batch (Jukebox, Dhariwal et al., 2020, section 3).

    Args:
        num_codes: codewords K.
        dim: channels C of a codeword.
    """

    def __init__(self, num_codes: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("codewords", torch.randn(num_codes, dim))
        self.register_buffer("average_count", torch.ones(num_codes))
        self.register_buffer("average_sum", torch.randn(num_codes, dim))
        self.register_buffer("started", torch.tensor(False))

    @property
    def num_codes(self) -> int:
        return self.codewords.shape[0]

    def nearest(self, vectors: Tensor) -> Tensor:
        """Index of the nearest codeword of each of (N,C) -> (N,) int64. Always by float32: bfloat16, which autocast
        would take, mistakes one codeword in thirty for its neighbour."""
        with torch.autocast(vectors.device.type, enabled=False):
            distances = self.codewords.square().sum(1) - 2 * vectors.float() @ self.codewords.T
        return distances.argmin(1)

    def lookup(self, indices: Tensor) -> Tensor:
        """(B,h,w) int64 -> codewords (B,C,h,w)."""
        return self.codewords[indices].permute(0, 3, 1, 2)

    def expected(self, logits: Tensor) -> Tensor:
        """Expected codeword under softmax(logits): (B,K,h,w) -> (B,C,h,w), differentiable."""
        probabilities = logits.float().softmax(1)
        return torch.einsum("bkhw,kc->bchw", probabilities, self.codewords)

    @property
    def perplexity(self) -> Tensor:
        """2^entropy of how often the codewords were chosen of late, a scalar of at most K."""
        return torch.special.entr(self.average_count / self.average_count.sum()).sum().exp()

    def forward(self, y: Tensor, draws: Draws | None = None) -> Quantised:
        """y (B,C,h,w) -> `Quantised`. Training mode needs `draws`, of which the restarts come."""
        y = y.float()
        batch, _, h, w = y.shape
        vectors = y.permute(0, 2, 3, 1).flatten(0, 2)
        indices = self.nearest(vectors.detach())
        if self.training:
            self._follow(vectors.detach(), indices, draws)
        indices = indices.view(batch, h, w)
        codes = self.lookup(indices)
        commitment = (y - codes).square().mean()
        return Quantised(y + (codes - y).detach(), indices, commitment)

    @torch.no_grad()
    def _follow(self, vectors: Tensor, indices: Tensor, draws: Draws) -> None:
        """Without a look at any value, which would wait for the device."""
        ones = torch.ones_like(indices, dtype=self.average_count.dtype)  # CUDA's bincount looks
        count = sum_over_processes(torch.zeros_like(self.average_count).index_add_(0, indices, ones))
        total = sum_over_processes(torch.zeros_like(self.average_sum).index_add_(0, indices, vectors))
        finite = total.isfinite().all()  # if not, the step is going to be skipped, and nothing moves here
        self.average_count.lerp_(count.where(finite, self.average_count), 1 - DECAY)
        self.average_sum.lerp_(total.where(finite, self.average_sum), 1 - DECAY)
        even_share = self.average_count.sum() / self.num_codes
        dead = finite & (self.average_count < RESTART_BELOW * even_share)
        restarted = self._random_inputs(vectors, draws) * even_share
        self.average_sum.copy_(restarted.where(dead[:, None], self.average_sum))
        self.average_count.copy_(even_share.where(dead, self.average_count))
        self.codewords.copy_(self.average_sum / self.average_count[:, None])

    def _random_inputs(self, vectors: Tensor, draws: Draws) -> Tensor:
        """One input (K,C) for every codeword, of the (N,C) of any process."""
        numbers = (draws.shared(self.num_codes) * processes() * len(vectors)).long() - rank() * len(vectors)
        numbers = numbers.to(vectors.device, non_blocking=True)
        ours = (numbers >= 0) & (numbers < len(vectors))
        return sum_over_processes(vectors[numbers.clamp(0, len(vectors) - 1)] * ours[:, None])

    @torch.no_grad()
    def start(self, vectors: Tensor, draws: Draws) -> None:
        """Set the codewords by k-means on (N,C), N >= K, of the first process: the others get what it found.

        Raises:
            ValueError: fewer vectors than codewords.
        """
        if len(vectors) < self.num_codes:
            raise ValueError(f"k-means needs at least {self.num_codes} vectors, got {len(vectors)}: use more crops")
        vectors = vectors.float()
        self.codewords.copy_(vectors[draws.shared(len(vectors)).argsort()[: self.num_codes]])
        for _ in range(ITERATIONS):
            indices = self.nearest(vectors)
            count = torch.bincount(indices, minlength=self.num_codes).float()
            total = torch.zeros_like(self.codewords).index_add_(0, indices, vectors)
            used = count > 0
            self.codewords[used] = total[used] / count[used, None]
        self.started.fill_(True)
        from_first_process(self.codewords)
        self.average_count.copy_(from_first_process(count).clamp(min=1e-3) * (1 - DECAY))
        self.average_sum.copy_(self.codewords * self.average_count[:, None])
