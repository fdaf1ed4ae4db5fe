"""Each measure of grids sees what the other is blind to, and neither sees one where there is none."""

import math

import pytest
import torch
from PIL import Image

from hybridflow.grids import GRID_PERIOD, spectral_peaks, typical_peaks, uneven_gradients
from hybridflow.image_io import image_to_tensor


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def pattern(period: int, height: int, width: int) -> torch.Tensor:
    """Random pixels (3,height,width) of variance 1 that repeat."""
    tile = torch.randn(3, period, period)
    return tile.repeat(1, math.ceil(height / period), math.ceil(width / period))[:, :height, :width]


def of_period(period: int) -> torch.Tensor:
    """Which of the grid's frequencies have a period: bool (GRID_PERIOD^2-1)."""
    chosen = torch.zeros(GRID_PERIOD, GRID_PERIOD, dtype=torch.bool)
    chosen[:: GRID_PERIOD // period, :: GRID_PERIOD // period] = True
    return chosen.flatten()[1:]


@pytest.mark.parametrize("period", [2, 4, 8, 16])
@pytest.mark.parametrize("axis", [-1, -2])
def test_blocks_are_seen_at_every_period_and_in_both_directions(period, axis):
    x = torch.rand(2, 3, 96, 80)
    size = [side // period if dim == axis else side for dim, side in ((-2, 96), (-1, 80))]
    blocks = torch.nn.functional.interpolate(torch.rand(2, 3, *size), x.shape[-2:])
    even = uneven_gradients(x, x + 0.1 * torch.randn_like(x))
    assert even.shape == (2,)
    assert (uneven_gradients(x, x + blocks) > 10 * even).all()


def test_weaker_or_stronger_gradients_are_no_grid():
    x = torch.rand(1, 3, 64, 64)
    assert float(uneven_gradients(x, 0.7 * x)) < 1e-4


@pytest.mark.parametrize("measure", [spectral_peaks, typical_peaks])
@pytest.mark.parametrize("period", [2, 4, 8])
def test_what_repeats_stands_out_of_the_spectrum_at_its_frequencies_only(measure, period):
    noise = 0.5 + 0.05 * torch.randn(2, 3, 192, 256)
    peaks = measure(noise + 0.0015 * period * pattern(period, 192, 256))
    assert peaks.shape == (2, GRID_PERIOD**2 - 1)
    assert (peaks[:, of_period(period)].mean(1) > 0.5).all()
    assert (peaks[:, ~of_period(period)].mean(1).abs() < 0.1).all()


def test_the_height_of_a_peak_is_what_arithmetic_says():
    """A chessboard of amplitude a in noise of deviation s: power a^2 N^4 (sum of the window)^2 at one frequency over
    s^2 times the sum of its squares, for a Hann window 1 + (a/s)^2 N^2 (1/2)^4 / (3/8)^2."""
    rows, columns = torch.arange(640)[:, None], torch.arange(640)
    board = (1 - 2 * ((rows + columns) % 2)).float()
    peaks = spectral_peaks(0.5 + 0.1 * torch.randn(1, 3, 640, 640) + 0.02 * board).view(-1)
    middle = GRID_PERIOD * GRID_PERIOD // 2 + GRID_PERIOD // 2 - 1
    assert float(peaks[middle]) == pytest.approx(math.log(1 + 0.04 * 64**2 / 16 / (3 / 8) ** 2), abs=0.15)
    assert int(peaks.argmax()) == middle


def test_noise_and_flat_pictures_have_no_peaks():
    assert float(spectral_peaks(torch.rand(1, 3, 256, 256)).abs().mean()) < 0.2
    assert float(spectral_peaks(torch.full((1, 3, 64, 64), 0.3)).abs().max()) < 1e-3


def test_what_repeats_after_an_index_stands_out_at_all_frequencies():
    noise = 0.05 * torch.randn(1, 3, 192, 256)
    assert float(spectral_peaks(0.5 + noise + 0.025 * pattern(16, 192, 256)).mean()) > 0.5


def test_a_photo_has_no_peaks(photos):
    picture = image_to_tensor(Image.open(photos[0]).convert("RGB"))
    assert float(spectral_peaks(picture).mean()) < 0.15


def test_a_grid_too_faint_to_see_counts_little():
    """A tenth of a level."""
    assert float(spectral_peaks(0.5 + 0.1 / 255 * pattern(4, 128, 128)[None]).mean()) < 0.7


def test_the_measures_see_different_grids():
    """Noise in stripes repeats nowhere; a diagonal hatch has equal steps everywhere."""
    x = torch.rand(1, 3, 192, 192)
    columns = torch.arange(192)
    striped = 0.5 + 0.1 * torch.randn(1, 3, 192, 192) * (columns % 4 == 0)
    hatch = x + 0.5 * torch.sin(2 * math.pi * (columns[:, None] + columns) / 4)
    assert float(uneven_gradients(x, striped)) > 0.1 > float(spectral_peaks(striped).abs().mean()) / 5
    assert float(uneven_gradients(x, hatch)) < 0.01
    assert float(spectral_peaks(hatch).max()) > 3


def test_strong_colour_at_one_place_does_not_make_up_for_a_grid_everywhere():
    """A decoder had found out that a spot in the corner of every image did, as long as powers were averaged over it."""
    x = 0.5 + 0.02 * torch.randn(1, 3, 256, 256)
    columns = torch.arange(256) % 4
    even = x + 0.01 * pattern(4, 256, 256)
    uneven = x + 0.05 * torch.randn(1, 3, 256, 256) * (columns == 0)
    spot = torch.zeros_like(x)
    spot[..., -32:-16, 16:32] = 0.4 * torch.randn(3, 16, 16)

    def peaks_left(measure):
        return float(measure(even + spot)[:, of_period(4)].mean() / measure(even)[:, of_period(4)].mean())

    assert peaks_left(spectral_peaks) < 0.75
    assert peaks_left(typical_peaks) > 0.95
    between = spot * (columns == 2)
    assert float(uneven_gradients(x, uneven + between) / uneven_gradients(x, uneven)) > 0.85


def test_in_a_flat_picture_a_peak_stands_out_of_the_rounding_noise():
    """A chessboard of one level, as above; the noise of rounding has a twelfth of a level squared."""
    rows, columns = torch.arange(128)[:, None], torch.arange(128)
    board = (1 - 2 * ((rows + columns) % 2)).float()
    peaks = spectral_peaks((0.5 + board / 255).expand(1, 3, -1, -1))
    assert float(peaks.max()) == pytest.approx(math.log(1 + 12 * 64**2 / 16 / (3 / 8) ** 2), abs=0.01)
