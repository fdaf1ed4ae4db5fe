"""Refining y_c before it is coded: what it descends along is what files cost and show, whole or by tiles."""

import pytest
import torch
from conftest import SMALL, random_model
from PIL import Image

from hybridflow import tiling
from hybridflow.draws import Draws
from hybridflow.errors import HybridFlowError
from hybridflow.image_io import image_to_tensor
from hybridflow.losses import Distortion, rate_weight
from hybridflow.refinement import RelaxedLatentModel

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
