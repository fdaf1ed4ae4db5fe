"""The distance of textures: what it is blind to, what it sees, and the closed form it stands on."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hybridflow.image_io import image_to_tensor
from hybridflow.metrics import load_lpips
from hybridflow.texture import _moments, texture_distance


@pytest.fixture(scope="module")
def lpips():
    return load_lpips().requires_grad_(False)


def gravel(seed):
    """A texture (1,3,160,160) in [-1,1] without structure: smoothed noise of one spectrum."""
    noise = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(noise, 5, 1, 2, count_include_pad=False).mul(2).clamp(-1, 1)


GRAVEL, OTHER_GRAVEL = gravel(0), gravel(1)


def test_equal_images_have_none(lpips):
    assert texture_distance(lpips, GRAVEL, GRAVEL.clone()) == 0


def test_the_same_texture_elsewhere_is_nearer_than_a_blurred_one(lpips):
    """Squared errors have it the other way round: what they leave of texture is blur."""
    blurred = F.avg_pool2d(GRAVEL, 9, 1, 4, count_include_pad=False)
    assert texture_distance(lpips, GRAVEL, OTHER_GRAVEL) < 0.7 * texture_distance(lpips, GRAVEL, blurred)
    assert (GRAVEL - OTHER_GRAVEL).square().mean() > 2 * (GRAVEL - blurred).square().mean()


def test_blur_is_far_and_the_farther_the_stronger(lpips, photos):
    with Image.open(photos[0]) as photo:
        x = 2 * image_to_tensor(photo.crop((100, 100, 356, 356))) - 1
    blurred = [F.avg_pool2d(x, side, 1, side // 2, count_include_pad=False) for side in (3, 5, 9)]
    distances = [float(texture_distance(lpips, x, image)) for image in blurred]
    assert 0 < distances[0] < distances[1] < distances[2]


def test_each_image_has_its_own_and_a_gradient(lpips):
    x = torch.cat([GRAVEL, OTHER_GRAVEL])
    x_hat = torch.cat([GRAVEL, 0.5 * OTHER_GRAVEL]).requires_grad_()
    distances = texture_distance(lpips, x, x_hat)
    assert distances.shape == (2,) and distances[0] == 0 and distances[1] > 0
    distances[1].backward()
    assert (x_hat.grad[0] == 0).all() and x_hat.grad[1].abs().max() > 0 and x_hat.grad.isfinite().all()


def test_moments_of_a_window_by_hand(lpips):
    """In windows of a whole small image, layer by layer, with the heads' weights."""
    x, x_hat = GRAVEL[..., :31, :31], OTHER_GRAVEL[..., :31, :31]
    by_hand = 0.0
    features = zip(*(lpips.net(lpips.scaling_layer(image)) for image in (x, x_hat)))
    for number, (feature, feature_hat) in enumerate(features):
        scale = feature.square().sum(1).mean().sqrt()
        for window in (32, 64):
            side = min(window // (4, 8, 16, 16, 16)[number], feature.shape[-1])
            assert feature.shape[-1] - side < -(-side // 2)  # a single window each way
            ours, theirs = (each[0, :, :side, :side].flatten(1) / scale for each in (feature, feature_hat))
            squared = (ours.mean(1) - theirs.mean(1)) ** 2
            squared = squared + (ours.std(1, correction=0) - theirs.std(1, correction=0)) ** 2
            by_hand += float(squared @ lpips.lins[number].model[-1].weight.flatten()) / 2
    assert float(texture_distance(lpips, x, x_hat)) == pytest.approx(by_hand, rel=0.02)


def test_windows_overlap_by_half():
    mean, deviation = _moments(torch.arange(8.0).expand(1, 1, 8, 8), 4)
    torch.testing.assert_close(mean[0, 0], torch.tensor([1.5, 3.5, 5.5]).expand(3, 3))
    torch.testing.assert_close(deviation[0, 0], torch.full((3, 3), 1.25**0.5))
