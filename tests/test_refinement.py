"""Refining y_c before it is coded: what it descends along is what files cost and show, whole or by tiles."""

import pytest
import torch
from conftest import SMALL, random_model
from PIL import Image

from hybridflow import refinement, tiling
from hybridflow.draws import Draws
from hybridflow.errors import HybridFlowError
from hybridflow.image_io import image_to_tensor
from hybridflow.losses import Distortion, rate_weight
from hybridflow.probability import latent_step_masks
from hybridflow.refinement import RATE, RelaxedLatentModel, _Descent, _round

STEPS = 8


@pytest.fixture(scope="module")
def picture(photos):
    with Image.open(photos[2]) as image:
        return image.crop((200, 100, 300, 180)).convert("RGB")


def loss_of(codec, picture, data):
    """Distortion + lambda * bpp of a file."""
    x, x_hat = (image_to_tensor(image) for image in (picture, codec.decode(data)))
    distortion, _ = Distortion()(x, x_hat, Draws(0, 0, torch.tensor([0])))
    bpp = 8 * len(data) / (picture.width * picture.height)
    return float(distortion + rate_weight(torch.tensor([40])) * bpp)


def test_the_relaxed_model_says_what_the_integers_say():
    exact = random_model(0).continuous.exact
    exact.out.multiplier *= 20  # for more than a few values
    generator = torch.Generator().manual_seed(0)
    z = torch.randint(-3, 4, (1, SMALL.z_channels, 2, 2), generator=generator)
    known = torch.randint(-40, 41, (1, SMALL.latent_channels, 8, 8), generator=generator)
    features = exact.features(z, 20)
    relaxed = RelaxedLatentModel(exact)
    for step in range(4):
        mean, index = exact.distribution(known, step, 20, features)
        relaxed_mean, relaxed_index = relaxed.distribution(known / 16, step, 20, features)
        for said, meant in ((16 * relaxed_mean, mean), (relaxed_index, index)):
            assert len(meant.unique()) > 10
            assert (said - meant).abs().mean() < 0.05 * meant.float().std()


@pytest.mark.parametrize("schedule", ["none", "1_4", "dynamic"])
def test_it_makes_a_better_file(codec, picture, schedule):
    plain, refined = (codec.encode(picture, quality=40, schedule=schedule, effort=e) for e in (0, STEPS))
    assert loss_of(codec, picture, refined) < loss_of(codec, picture, plain) - 0.01


def test_it_leaves_no_trace_in_the_model(codec, picture):
    before = codec.encode(picture, quality=40)
    refined = codec.encode(picture, quality=40, effort=1)
    assert refined != before == codec.encode(picture, quality=40)
    assert refined == codec.encode(picture, quality=40, effort=1)
    assert all(parameter.grad is None for parameter in codec.model.parameters())


def test_indices_that_are_not_sent_are_not_looked_for(codec, picture, monkeypatch):
    asked = []
    indices_of = type(codec.model).indices_of
    monkeypatch.setattr(type(codec.model), "indices_of", lambda *args: asked.append(1) or indices_of(*args))
    codec.encode(picture, schedule="none", effort=1)
    assert not asked
    codec.encode(picture, schedule="1_4", effort=1)
    assert len(asked) == 1


def test_a_target_is_kept(codec, picture):
    limit = len(codec.encode(picture, quality=20, schedule="none")) + 2
    plain, refined = (codec.encode(picture, max_bytes=limit, effort=effort) for effort in (0, STEPS))
    assert len(refined) <= limit and refined != plain


def test_a_target_that_only_the_plain_file_keeps(codec, picture, monkeypatch):
    limit = len(codec.encode(picture, quality=0, schedule="none"))
    monkeypatch.setattr("hybridflow.model.refine", lambda codec, decode, image, gained, *rest: 9 * gained)
    plain, refined = (codec.encode(picture, max_bytes=limit, schedule="none", effort=effort) for effort in (0, 1))
    assert plain == refined


def test_pictures_under_64_pixels_are_coded_as_they_are(codec, picture):
    narrow = picture.crop((0, 0, 100, 48))
    assert codec.encode(narrow, effort=STEPS) == codec.encode(narrow)


def test_an_effort_below_zero_is_refused(codec, picture):
    with pytest.raises(HybridFlowError, match="effort must be at least 0"):
        codec.encode(picture, effort=-1)


def test_a_picture_of_many_tiles_is_made_better(codec, photos, monkeypatch):
    monkeypatch.setattr(tiling, "TILE", 8)
    monkeypatch.setattr(tiling, "HALO", 2)
    with Image.open(photos[2]) as image:
        picture = image.crop((200, 100, 456, 228)).convert("RGB")
    plain, refined = (codec.encode(picture, quality=40, effort=effort) for effort in (0, STEPS))
    assert loss_of(codec, picture, refined) < loss_of(codec, picture, plain) - 0.01


def test_the_relaxed_model_knows_quality_and_step():
    exact, generator = random_model(0).continuous.exact, torch.Generator().manual_seed(0)
    for values in (exact.known.bias, exact.step):
        values.copy_(torch.randint(-(2**27), 2**27, values.shape, generator=generator))
    exact.out.multiplier *= 20
    known = torch.randint(-40, 41, (1, SMALL.latent_channels, 8, 8), generator=generator)
    z = torch.randint(-3, 4, (1, SMALL.z_channels, 2, 2), generator=generator)
    features, relaxed = exact.features(z, 20), RelaxedLatentModel(exact)
    for quality in (0, 63):
        for step in range(4):
            mean, _ = exact.distribution(known, step, quality, features)
            said, _ = relaxed.distribution(known / 16, step, quality, features)
            assert (16 * said - mean).abs().mean() < 0.05 * mean.float().std()


class Squares(torch.nn.Module):
    """In place of the distortion; notes what is drawn."""

    drawn: list = []
    weight = 1.0

    def forward(self, x, x_hat, draws):
        self.drawn.append(float(draws.shared(1)))
        return self.weight * (x - x_hat).square().flatten(1).mean(1), {}


@pytest.fixture
def descent(monkeypatch):
    """refine(...) of a small model -> the gradients of its steps, and how far y_c went if all directions are ones."""
    codec, gradients = random_model(0).continuous, []
    monkeypatch.setattr(refinement, "_distortion", lambda device: Squares())
    monkeypatch.setattr(
        refinement._Descent, "direction", lambda self, gradient: gradients.append(gradient) or torch.ones_like(gradient)
    )
    generator = torch.Generator().manual_seed(0)
    gained = 3 * torch.randn(1, SMALL.latent_channels, 8, 20, generator=generator)
    image = torch.rand(1, 3, 128, 320, generator=generator)
    z = torch.zeros(1, SMALL.z_channels, 2, 5)

    def decode(y_hat, window):
        return torch.nn.functional.interpolate(y_hat[:, :3], scale_factor=16)

    def run(steps):
        gradients.clear()
        moved = refinement.refine(codec, decode, image, gained, z, 40, steps) - gained
        return list(gradients), moved

    run.codec, run.gained, run.z, run.pixels = codec, gained, z, 128 * 320
    return run


def test_the_rate_is_lambda_times_bits_per_pixel(descent, monkeypatch):
    monkeypatch.setattr(Squares, "weight", 0.0)
    (gradient,), _ = descent(1)
    exact, leaf = descent.codec.exact, descent.gained.clone().requires_grad_()
    features, masks = exact.features(descent.z.long(), 40), latent_step_masks(SMALL.latent_channels, 8, 20)
    _, bits = _round(RelaxedLatentModel(exact), features, masks, leaf, 40)
    (rate_weight(torch.tensor(40)) / descent.pixels * bits).backward()
    torch.testing.assert_close(gradient, leaf.grad)
    assert (leaf.grad[:, -1] == 0).all() and leaf.grad[:, :-1].any()  # symbols of the smallest scale are not coded


def test_the_distortion_of_tiles_is_that_of_the_whole(descent, monkeypatch):
    (whole,), _ = descent(1)
    monkeypatch.setattr(tiling, "TILE", 8)
    (tiled,), _ = descent(1)
    torch.testing.assert_close(tiled, whole)


@pytest.mark.parametrize("steps, average", [(1, 1), (4, (3 + 3.5) / 4), (10, 7.2 / 10**0.5)])
def test_the_second_half_of_the_descent_slows_down_and_is_averaged_and_each_step_draws_anew(steps, average, descent):
    Squares.drawn.clear()
    _, moved = descent(steps)
    torch.testing.assert_close(moved, torch.full_like(moved, -RATE * average), rtol=1e-4, atol=1e-6)
    assert len(set(Squares.drawn)) == steps


def test_directions_are_about_one_in_size_from_the_first_step_on():
    gradient = 1e-3 * torch.randn(1, 4, 5, 6).sign()
    descent = _Descent(gradient)
    for _ in range(3):
        torch.testing.assert_close(descent.direction(gradient), gradient.sign(), rtol=1e-3, atol=0)


def test_a_picture_of_64_pixels_is_refined(codec, photos):
    picture = Image.open(photos[2]).convert("RGB").crop((200, 100, 264, 164))
    assert codec.encode(picture, effort=1) != codec.encode(picture)


def test_what_is_descended_along_is_on_the_grid_of_what_is_decoded(descent):
    exact = descent.codec.exact
    features, masks = exact.features(descent.z.long(), 40), latent_step_masks(SMALL.latent_channels, 8, 20)
    known, _ = _round(RelaxedLatentModel(exact), features, masks, descent.gained, 40)
    torch.testing.assert_close(16 * known, (16 * known).round(), atol=1e-3, rtol=0)
