"""What symbols of a scale turn out to be, for the tables of the coder.

Given its scale, y is no Gaussian: zero and far values are likelier than that. Frozen networks know the scale only
roughly too. So a scale's tables are those of a mixture of Gaussians of several widths (scale mixtures: Andrews and
Mallows, 1974), whose shares are fitted to what photos hold.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from hybridflow.continuous import REACH, ContinuousCodec, gaussian_pmf
from hybridflow.probability import SCALES, WIDTHS

PRIOR = 100
"""Symbols in each scale that are as the Gaussian has them, beside those that were counted."""
ITERATIONS = 200


@torch.no_grad()
def count_distances(codec: ContinuousCodec, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """How often symbols of y of each scale are -R..R from their means: (SCALES,2R+1) int64; R is `REACH`.

    Args:
        codec: frozen, in eval mode.
        batches: images (B,3,H,W) in [0,1] and their qualities (B,) int64.
    """
    counts = torch.zeros(SCALES, 2 * REACH + 1, dtype=torch.int64)
    for images, quality in batches:
        y, z = codec.gain(codec.analysis(images), quality)
        decoded, means, indices = codec.quantise_y(y.float(), z.float().round(), quality)
        distances = decoded - means
        counted = (indices > 0) & (distances.abs() <= REACH)
        symbols = indices[counted] * counts.shape[1] + distances[counted] + REACH
        counts += torch.bincount(symbols.long().cpu(), minlength=counts.numel()).view_as(counts)
    return counts


def fit_shares(counts: Tensor) -> Tensor:
    """Counts (SCALES,2R+1) -> the shares (SCALES,len(WIDTHS)) float64, adding up to 1, of Gaussians of each width,
    under which they are likeliest: by expectation maximisation (Dempster et al., 1977)."""
    likelihoods = gaussian_pmf(0.0)
    prior = PRIOR * (WIDTHS == 1).double()[:, None]
    shares = torch.full(likelihoods.shape[:2], 1 / len(WIDTHS), dtype=torch.float64)
    for _ in range(ITERATIONS):
        joint = shares[..., None] * likelihoods
        responsible = joint / joint.sum(0).clamp(min=torch.finfo(joint.dtype).tiny)
        shares = prior + (responsible * counts).sum(2)
        shares = shares / shares.sum(0)
    return shares.T
