"""The losses: what counts, what gets no gradient, and what the numbers are by hand."""

import math

import pytest
import torch

from hybridflow.draws import Draws
from hybridflow.losses import (
    CHARBONNIER_WEIGHT,
    LPIPS_WEIGHT,
    MSE_WEIGHT,
    PEAKS_WEIGHT,
    RATE_WEIGHT_HIGHEST_QUALITY,
    RATE_WEIGHT_LOWEST_QUALITY,
    UNEVEN_WEIGHT,
    Distortion,
    _shift_and_rescale,
    bits,
    gaussian_bits,
    masked_accuracy,
    masked_cross_entropy,
    pixel_errors,
    plain_distortion,
    rate_weight,
)


def test_only_masked_positions_count():
    torch.manual_seed(0)
    logits = torch.randn(2, 10, 4, 5, requires_grad=True)
    indices = torch.randint(10, (2, 4, 5))
    sent = torch.rand(2, 4, 5) < 0.5
    loss = masked_cross_entropy(logits, indices, sent)
    loss.backward()
    by_hand = [
        -logits[b, :, i, j].log_softmax(0)[indices[b, i, j]]
        for b, i, j in (~sent).nonzero().tolist()
    ]
    torch.testing.assert_close(loss, torch.stack(by_hand).mean())
    gradient = logits.grad.abs().sum(1)
    assert (gradient[sent] == 0).all() and (gradient[~sent] > 0).all()

    indices[sent] = (indices[sent] + 1) % 10
    with torch.no_grad():
        changed = logits + 5 * torch.randn_like(logits) * sent[:, None]
    torch.testing.assert_close(masked_cross_entropy(changed, indices, sent), loss.detach())


def test_nothing_masked_is_no_loss():
    logits = torch.randn(1, 10, 2, 2, requires_grad=True)
    loss = masked_cross_entropy(logits, torch.zeros(1, 2, 2, dtype=torch.int64), torch.ones(1, 2, 2, dtype=torch.bool))
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


def test_masked_cross_entropy_of_even_logits_is_the_logarithm_of_their_number():
    sent = torch.zeros(1, 2, 2, dtype=torch.bool)
    loss = masked_cross_entropy(torch.zeros(1, 1024, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64), sent)
    assert float(loss) == pytest.approx(10 * math.log(2))


def test_bits_are_summed_per_sample():
    likelihoods = torch.tensor([[[0.5, 0.25]], [[1.0, 0.125]]])
    assert bits(likelihoods).tolist() == pytest.approx([3, 3])
    assert bits(torch.ones(2, 3, 4)).tolist() == [0, 0]


def test_bits_of_a_gaussian_are_exact_in_its_tail():
    residual, scale = torch.tensor([0.0, 0.3, 1.9, -1.9, 9.0]), torch.tensor([0.5, 2.0, 0.25, 0.25, 0.1])
    half = (residual.double().abs() - 0.5) / scale / 2**0.5, (residual.double().abs() + 0.5) / scale / 2**0.5
    exact = -(0.5 * (half[0].erfc() - half[1].erfc())).clamp(min=2**-30).log2()
    residual.requires_grad_()
    torch.testing.assert_close(gaussian_bits(residual, scale), exact.float(), atol=1e-3, rtol=0)
    gaussian_bits(residual, scale)[2].backward()
    assert residual.grad[2] > 10


def test_rate_weight_is_geometric_between_its_ends():
    weights = rate_weight(torch.arange(64))
    assert float(weights[0]) == pytest.approx(RATE_WEIGHT_LOWEST_QUALITY)
    assert float(weights[63]) == pytest.approx(RATE_WEIGHT_HIGHEST_QUALITY, rel=1e-4)
    ratios = weights[1:] / weights[:-1]
    assert (ratios < 1).all() and ratios.max() - ratios.min() < 1e-5


DRAWS = Draws(0, 0, torch.arange(2))


@pytest.fixture(scope="module")
def distortion():
    return Distortion()


def test_distortion_of_equal_images_is_zero(distortion):
    x = torch.rand(2, 3, 64, 64)
    values, terms = distortion(x, x.clone(), DRAWS)
    assert (values == 0).all() and all(term == 0 for term in terms.values())


def test_distortion_is_positive_weighted_and_differentiable(distortion):
    torch.manual_seed(0)
    x = torch.rand(2, 3, 64, 64)
    x_hat = (x + 0.1 * torch.randn_like(x)).requires_grad_()
    values, terms = distortion(x, x_hat, DRAWS)
    assert values.shape == (2,) and (values > 0).all()
    assert float(terms["pixels"]) == pytest.approx(float(pixel_errors(x, x_hat).detach().mean()))
    weights = {"pixels": 1, "lpips": LPIPS_WEIGHT, "uneven": UNEVEN_WEIGHT, "peaks": PEAKS_WEIGHT}
    expected = sum(weight * terms[name] for name, weight in weights.items())
    torch.testing.assert_close(values.mean().detach(), expected)
    values.sum().backward()
    assert (x_hat.grad.abs().flatten(1).sum(1) > 0).all()
    assert all(parameter.grad is None for parameter in distortion.parameters())


def test_pixel_errors_are_l1_and_squared_error_but_smooth_at_zero():
    x = torch.zeros(3, requires_grad=True)
    x_hat = torch.tensor([0.0, 0.5, -0.1])
    errors = pixel_errors(x, x_hat)
    expected = CHARBONNIER_WEIGHT * x_hat.abs() + MSE_WEIGHT * x_hat.square()
    torch.testing.assert_close(errors, expected, atol=CHARBONNIER_WEIGHT * 1e-3, rtol=0)
    errors.sum().backward()
    assert x.grad[0] == 0 and x.grad[1] < 0 < x.grad[2]


def test_grids_and_textures_count_beside_the_rest():
    torch.manual_seed(0)
    x = torch.rand(2, 3, 64, 64)
    x_hat = (x + 0.1 * torch.randn_like(x)).clamp(0, 1)
    draws = [Draws(0, 0, torch.arange(2)) for _ in range(2)]
    plain, _ = Distortion()(x, x_hat, draws[0])
    textured, terms = Distortion(grid_weight=5, texture_weight=16)(x, x_hat, draws[1])
    grids = UNEVEN_WEIGHT * terms["uneven"] + PEAKS_WEIGHT * terms["peaks"]
    torch.testing.assert_close(textured.mean(), plain.mean() + 4 * grids + 16 * terms["texture"])
    assert terms["texture"] > 0 and grids > 0


def test_a_baseline_trains_for_the_squared_error_alone():
    torch.manual_seed(0)
    x, x_hat = torch.rand(2, 2, 3, 64, 64)
    values, terms = Distortion(mse_weight=40)(x, x_hat, DRAWS)
    torch.testing.assert_close(values, 40 * (x - x_hat).square().mean((1, 2, 3)))
    assert terms.keys() == {"mse"}


def test_each_image_has_its_own_distortion(distortion):
    torch.manual_seed(0)
    x = torch.rand(2, 3, 64, 64)
    x_hat = torch.stack([x[0], x[1].flip(-1)])
    values, _ = distortion(x, x_hat, DRAWS)
    assert values[0] == 0 and values[1] > 0.5


def test_accuracy_counts_masked_positions_only():
    indices = torch.tensor([[[0, 1], [2, 3]]])
    logits = torch.nn.functional.one_hot(torch.tensor([[[0, 1], [0, 0]]]), 4).permute(0, 3, 1, 2).float()
    sent = torch.tensor([[[False, True], [False, True]]])
    assert float(masked_accuracy(logits, indices, sent)) == 0.5


def test_the_plain_distortion_is_of_pixels_and_lpips_of_each_image():
    x = torch.full((2, 3, 8, 8), 0.5)
    x_hat = x + torch.tensor([0.0, 0.2]).view(2, 1, 1, 1)

    def lpips(a, b):
        assert a.abs().max() == 0 and float(b.max()) == pytest.approx(0.4)  # of images in [-1,1]
        return torch.tensor([0.1, 0.3]).view(2, 1, 1, 1)

    assert plain_distortion(x, x_hat, lpips).tolist() == pytest.approx([0.1, 2 * 0.2 + 16 * 0.04 + 0.3], abs=0.01)


def test_lpips_of_the_distortion_sees_images_in_minus_one_to_one():
    torch.manual_seed(0)
    distortion, (x, x_hat) = Distortion(), torch.rand(2, 2, 3, 64, 64)
    _, terms = distortion(x, x_hat, Draws(0, 7, torch.arange(2)))
    seen = _shift_and_rescale(Draws(0, 7, torch.arange(2)), 2 * x - 1, 2 * x_hat - 1)
    torch.testing.assert_close(terms["lpips"], distortion.lpips(*seen).mean())


def test_images_are_shifted_by_every_phase_and_half_of_the_time_made_smaller():
    ramp = torch.arange(64.0)
    place = torch.stack([ramp[:, None].expand(64, 64), ramp.expand(64, 64)])[None]
    seen = [_shift_and_rescale(Draws(0, step, torch.arange(1)), place)[0] for step in range(200)]
    whole = [image for image in seen if image[0, 0, 1, 0] - image[0, 0, 0, 0] == 1]
    corners = {tuple(image[0, :, 0, 0].int().tolist()) for image in whole}
    assert corners == {(i, j) for i in range(4) for j in range(4)}
    assert 70 < len(whole) < 130 and all(image.shape[-1] >= 45 for image in seen)


def test_peaks_that_are_missing_count_as_those_that_are_too_many():
    torch.manual_seed(0)
    distortion, (x, x_hat) = Distortion(), torch.rand(2, 1, 3, 64, 64)
    x_hat[..., ::8, ::8] += 0.5
    ways = [distortion(*pair, Draws(0, 0, torch.arange(1)))[1]["peaks"] for pair in ((x, x_hat), (x_hat, x))]
    assert ways[0] > 0
    torch.testing.assert_close(*ways)
