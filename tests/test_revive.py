"""Waking silent latent channels: they get louder, nothing that is decoded changes, and nobody else is touched."""

import pytest
import torch
from conftest import SMALL, random_model

from hybridflow.ablation import Ablations
from hybridflow.probability import SCALE_MAX, SCALE_MIN, scale_of
from hybridflow.training.revive import AWAKE, SILENT, revive_latents

MIDDLE = torch.tensor([32])


def deviations(model, images):
    with torch.no_grad():
        gained, _ = model.continuous.gain(model.continuous.analysis(images), MIDDLE.expand(len(images)))
    return gained.std((0, 2, 3))


@pytest.fixture
def images():
    torch.manual_seed(3)
    return torch.nn.functional.interpolate(torch.rand(4, 3, 16, 16), scale_factor=4, mode="bilinear")


def test_silent_channels_wake_and_the_others_stay(images):
    model = random_model(0)
    last = model.continuous.analysis.net[-1]
    with torch.no_grad():
        last.weight[::2] *= 1e-3
        last.bias[::2] *= 1e-3
    before = deviations(model, images)
    silent = before < SILENT
    assert silent[::2].all()
    assert revive_latents(model, Ablations(SMALL), images) == int(silent.sum())
    after = deviations(model, images)
    assert torch.allclose(after[silent], torch.tensor(AWAKE), rtol=1e-3)
    assert torch.equal(after[~silent], before[~silent])
    assert revive_latents(model, Ablations(SMALL), images) == 0


def test_what_is_decoded_does_not_hear_a_woken_channel_yet_but_its_weights_learn(images):
    model = random_model(0)
    with torch.no_grad():
        model.continuous.analysis.net[-1].weight[0] *= 1e-4
    revive_latents(model, Ablations(SMALL), images)
    y_hat = torch.randn(1, SMALL.latent_channels, 4, 4)
    other = y_hat.clone()
    other[:, 0] += 5
    features = model.correction(y_hat)
    for one, two in zip(features, model.correction(other)):
        assert torch.equal(one, two)
    sum(f.square().sum() for f in features).backward()
    assert model.correction.trunk.entries[0].weight.grad[:, 0].abs().sum() > 0


def test_a_woken_channel_is_expected_at_its_new_scale(images):
    model = random_model(0)
    with torch.no_grad():
        model.continuous.analysis.net[-1].weight[1] *= 1e-4
    revive_latents(model, Ablations(SMALL), images)
    features, known = torch.randn(1, SMALL.context_width, 4, 4), torch.randn(1, SMALL.latent_channels, 4, 4)
    mean, index = model.continuous.context(known, 0, MIDDLE, features)
    assert torch.equal(mean[:, 1], torch.zeros_like(mean[:, 1]))
    assert torch.allclose(scale_of(index[:, 1]), torch.tensor(AWAKE), rtol=1e-4)
    assert SCALE_MIN < AWAKE < SCALE_MAX
