"""The choice of regions: by distortion plus lambda times rate, on images of any size."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hybridflow import model, tiling
from hybridflow.dynamic_masking import choose_regions, error_map, spatial_lpips
from hybridflow.image_io import image_to_tensor
from hybridflow.losses import pixel_errors
from hybridflow.masking import REGION, region_grid
from hybridflow.region_prior import RegionPrior


def bits_of(regions):
    """What every region's schedule may cost, given those before it (n,4), and what the chosen ones do (n,)."""
    prior, bits = RegionPrior(regions.shape[1]), []
    for region in regions.ravel():
        bits.append(20 - np.log2(prior.counts()))
        prior.append(int(region))
    return np.array(bits), np.array(bits)[np.arange(regions.size), regions.ravel()]


@pytest.mark.parametrize("h, w", [(1, 1), (6, 6), (7, 13)])
@pytest.mark.parametrize("weight", [0.0, 0.3, 30.0, 1e6])
def test_each_region_takes_its_cheapest_schedule(h, w, weight):
    torch.manual_seed(0)
    errors = torch.rand(4, 1, 16 * h, 16 * w)
    index_bits = 16**2 * torch.rand(4, h, w) * torch.tensor([1, 0.25, 0.11, 0])[:, None, None]
    chosen = choose_regions(errors, index_bits, weight)
    assert chosen.shape == region_grid(h, w)
    own = bits_of(chosen)[0].reshape(*chosen.shape, 4)
    for row in range(chosen.shape[0]):
        for column in range(chosen.shape[1]):
            rows, columns = slice(row * REGION, (row + 1) * REGION), slice(column * REGION, (column + 1) * REGION)
            pixel_rows, pixel_columns = (slice(16 * s.start, 16 * s.stop) for s in (rows, columns))
            cost = errors[:, 0, pixel_rows, pixel_columns].sum((1, 2))
            cost = cost + weight * (index_bits[:, rows, columns].sum((1, 2)) + torch.from_numpy(own[row, column]))
            assert chosen[row, column] == cost.argmin()
    if weight == 1e6:
        assert (chosen == 3).all()  # none is sent


@pytest.mark.parametrize("rows, columns, bound", [(6, 8, 96), (9, 10, 180)])
def test_schedules_take_two_bits_a_region_at_most(rows, columns, bound):
    """Even of noise, where each region's cheapest would often take more."""
    over = 0
    for seed in range(5):
        torch.manual_seed(seed)
        errors = torch.rand(4, 1, rows, columns).repeat_interleave(96, 2).repeat_interleave(96, 3)
        chosen = choose_regions(errors, torch.zeros(4, 6 * rows, 6 * columns), 10.0)
        cheapest = errors[:, 0, ::96, ::96].argmin(0).numpy()
        over += bits_of(cheapest)[1].sum() > bound
        assert bits_of(chosen)[1].sum() <= bound and (chosen == cheapest).mean() > 0.5
    assert over > 1


def test_schedules_of_equal_worth_follow_those_before_them():
    errors = torch.zeros(4, 1, 96, 96 * 4)
    errors[1:, ..., :192] = 1.0  # two regions need the first schedule, the others do as well with the second
    errors[2:, ..., 192:] = 1.0
    assert choose_regions(errors, torch.zeros(4, 6, 24), 1.0).tolist() == [[0, 0, 0, 0]]


@pytest.fixture(scope="module")
def lpips():
    return spatial_lpips(torch.device("cpu"))


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
    pixels = pixel_errors(x, x_hat).mean(1, keepdim=True)
    assert (errors >= pixels).all() and errors.mean() > pixels.mean()
    assert errors[..., :8, :8].mean() > errors.mean()


@torch.inference_mode()
def test_error_maps_are_pixel_errors_and_lpips_of_images_in_minus_one_to_one():
    torch.manual_seed(0)
    lpips, (x, x_hat) = spatial_lpips(torch.device("cpu")), torch.rand(2, 1, 3, 64, 64)
    expected = pixel_errors(x, x_hat).mean(1, keepdim=True) + lpips(2 * x - 1, 2 * x_hat - 1)
    torch.testing.assert_close(error_map(x, x_hat, lpips), expected)
    narrow = [image[..., :16, :] for image in (x, x_hat)]
    wide = [torch.cat([image, image[..., -1:, :].expand(1, 3, 16, 64)], 2) for image in narrow]
    torch.testing.assert_close(error_map(*narrow, lpips), error_map(*wide, lpips)[..., :16, :])


def crop(photos, width, height):
    with Image.open(photos[0]) as image:
        return image.convert("RGB").crop((0, 0, width, height))


@torch.inference_mode()
def test_regions_err_by_tiles_as_they_do_by_the_whole(lpips, photos, monkeypatch):
    """But for AlexNet's strides, which leave maps that are stretched to the image's size by a few pixels."""
    monkeypatch.setattr(tiling, "TILE", 16)
    x = image_to_tensor(crop(photos, 768, 480))
    x_hat = F.avg_pool2d(x, 9, 1, 4, count_include_pad=False)
    whole = F.avg_pool2d(error_map(x, x_hat, lpips), 96)
    tiled = F.avg_pool2d(tiling.compare_tiled(lambda *images: error_map(*images, lpips), x, x_hat), 96)
    torch.testing.assert_close(tiled, whole, rtol=0.03, atol=0)


def test_large_images_are_tried_tile_by_tile(codec, photos, monkeypatch):
    sizes = []

    def noted(x, x_hat, lpips):
        sizes.append(x.shape[-2:])
        return error_map(x, x_hat, lpips)

    monkeypatch.setattr(tiling, "TILE", 8)
    monkeypatch.setattr(model, "error_map", noted)
    codec.encode(crop(photos, 640, 128), quality=31, schedule="dynamic")
    assert len(sizes) == 4 * 5 and all(max(size) <= 16 * (8 + 2 * tiling.HALO) for size in sizes)


def test_small_images_may_spend_96_bits_on_their_schedules():
    over = 0
    for seed in range(8):
        torch.manual_seed(seed)
        errors = torch.rand(4, 1, 5, 6).repeat_interleave(96, 2).repeat_interleave(96, 3)
        chosen = choose_regions(errors, torch.zeros(4, 30, 36), 1e-3)
        cheapest = errors[:, 0, ::96, ::96].argmin(0).numpy()
        bits = bits_of(cheapest)[1].sum()
        assert bits <= 96 and (chosen == cheapest).all()
        over += bits > 60
    assert over > 1
