"""The coder's tables: fitted to what photos hold, counted as it is coded."""

from types import SimpleNamespace

import pytest
import torch
from conftest import random_model
from test_freeze import noise

from hybridflow.continuous import REACH
from hybridflow.entropy import PRECISION
from hybridflow.probability import SCALES, WIDTHS, scale_of
from hybridflow.training.tables import count_distances, fit_shares

VALUES = torch.arange(-REACH, REACH + 1).double()


def bits(counts, tables):
    """Of the symbols of every scale, by tables of distances from a whole mean."""
    return -(counts * (tables[0, :, :-1].double() / 2**PRECISION).log2()).sum(1)


def sampled(density):
    """A million symbols a scale of a density of standard deviation 1, scaled and rounded: (SCALES,2R+1)."""
    scales = scale_of(torch.arange(SCALES).double())[:, None]
    upper, lower = (density.cdf((VALUES + edge) / scales) for edge in (0.5, -0.5))
    return (1e6 * (upper - lower)).round()


@pytest.mark.parametrize(
    "density, saved",
    [(torch.distributions.Laplace(0.0, 0.5**0.5), 0.02), (torch.distributions.Normal(0.0, 1.0), -1e-3)],
)
def test_tables_fit_densities_and_leave_gaussians_alone(density, saved):
    codec, counts = random_model(0).continuous, sampled(density)
    codec.bake_tables()
    gaussian = bits(counts, codec.scale_counts)
    shares = fit_shares(counts)
    torch.testing.assert_close(shares.sum(1), torch.ones(SCALES).double())
    codec.bake_tables(shares)
    assert codec.scale_counts.min() >= 1 and (codec.scale_counts.long().sum(-1) == 2**PRECISION).all()
    fitted = bits(counts, codec.scale_counts)
    middle = slice(SCALES // 3, SCALES // 2)
    assert (fitted[middle] < (1 - saved) * gaussian[middle]).all()


def test_a_scale_that_no_photo_holds_keeps_its_gaussian():
    shares = fit_shares(torch.zeros(SCALES, len(VALUES)))
    torch.testing.assert_close(shares[:, WIDTHS == 1].squeeze(), torch.ones(SCALES).double())


@torch.inference_mode()
def test_what_is_counted_is_what_is_coded():
    """Bits of the counted distances against those that the forward pass, as the coder, gives the same images."""
    model, images, quality = random_model(0), noise(3), torch.tensor([5, 30, 60])
    counts = count_distances(model.continuous, [(images[:2], quality[:2]), (images[2:], quality[2:])])
    likelihoods = model.continuous(images, quality).likelihoods["y"]
    coded = float(-likelihoods.double().log2().sum())
    assert counts.sum() == (likelihoods < 1).sum() and counts[0].sum() == 0
    assert float(bits(counts, model.continuous.scale_counts).sum()) == pytest.approx(coded)


@torch.inference_mode()
def test_freezing_fits_the_tables():
    """Fewer bits than by Gaussians for images such as it saw."""
    model, images, quality = random_model(0), noise(), torch.full((8,), 20)
    fitted = model.continuous(images, quality).likelihoods["y"].log2().sum()
    model.update(force=True)
    assert fitted > 0.99 * model.continuous(images, quality).likelihoods["y"].log2().sum()


def test_symbols_beyond_the_tables_are_not_counted():
    distances = torch.tensor([0.0, REACH, REACH + 1, -REACH - 1])
    codec = SimpleNamespace(
        analysis=lambda x: x,
        gain=lambda y, quality: (y, y),
        quantise_y=lambda y, z, quality: (distances, torch.zeros(4), torch.full((4,), 3)),
    )
    counts = count_distances(codec, [(torch.zeros(1), torch.zeros(1))])
    assert counts.sum() == 2 and counts[3, REACH] == counts[3, 2 * REACH] == 1
