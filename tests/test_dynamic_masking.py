"""The choice of regions: by distortion plus lambda times rate, on images of any size."""

import pytest
import torch

from hybridflow.dynamic_masking import choose_regions, error_map, spatial_lpips
from hybridflow.losses import L1_WEIGHT
from hybridflow.masking import REGION, region_grid


@pytest.mark.parametrize("h, w", [(1, 1), (6, 6), (7, 13)])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1e6])
def test_each_region_takes_its_cheapest_schedule(h, w, weight):
    torch.manual_seed(0)
    errors = torch.rand(4, 1, 16 * h, 16 * w)
    index_bits = 16**2 * torch.rand(4, h, w) * torch.tensor([1, 0.25, 0.11, 0])[:, None, None]
    chosen = choose_regions(errors, index_bits, weight)
    assert chosen.shape == region_grid(h, w)
    for row in range(chosen.shape[0]):
        for column in range(chosen.shape[1]):
            rows, columns = slice(row * REGION, (row + 1) * REGION), slice(column * REGION, (column + 1) * REGION)
            pixel_rows, pixel_columns = (slice(16 * s.start, 16 * s.stop) for s in (rows, columns))
            cost = errors[:, 0, pixel_rows, pixel_columns].sum((1, 2))
            cost = cost + weight * index_bits[:, rows, columns].sum((1, 2))
            assert chosen[row, column] == cost.argmin()
    if weight == 1e6:
        assert (chosen == 3).all()  # none is sent


@pytest.fixture(scope="module")
def lpips():
    return spatial_lpips()


@pytest.mark.parametrize("height, width", [(16, 16), (16, 48), (64, 32)])
@torch.inference_mode()
def test_error_maps_fit_the_image(lpips, height, width):
    torch.manual_seed(0)
    x = torch.rand(1, 3, height, width)
    assert error_map(x, x, lpips).abs().max() == 0
    x_hat = x.clone()
    x_hat[..., :8, :8] = 1 - x_hat[..., :8, :8]
    errors = error_map(x, x_hat, lpips)
    assert errors.shape == (1, 1, height, width) and errors.min() >= 0
    l1 = L1_WEIGHT * (x - x_hat).abs().mean(1, keepdim=True)
    assert (errors >= l1).all() and errors.mean() > l1.mean()
    assert errors[..., :8, :8].mean() > errors.mean()
