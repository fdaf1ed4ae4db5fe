"""Waking silent latent channels: they get louder, their decoder does not hear them yet, and the others stay."""

import pytest
import torch
from conftest import SMALL, random_model

from hybridflow.ablation import Ablations
from hybridflow.probability import SCALE_MAX, SCALE_MIN, scale_of
from hybridflow.training.revive import AWAKE, SILENT, revive_latents

MIDDLE = torch.tensor([32])


def deviations(codec, images):
    with torch.no_grad():
        gained, _ = codec.gain(codec.analysis(images), MIDDLE.expand(len(images)))
    return gained.std((0, 2, 3))


@pytest.fixture
def images():
    torch.manual_seed(3)
    return torch.nn.functional.interpolate(torch.rand(4, 3, 16, 16), scale_factor=4, mode="bilinear")


@pytest.fixture
def synthesis():
    return Ablations(SMALL).light_synthesis


def codec_with_silent(channels):
    codec = random_model(0).continuous
    with torch.no_grad():
        codec.analysis.net[-1].weight[channels] *= 1e-4
        codec.analysis.net[-1].bias[channels] *= 1e-4
    return codec


def test_silent_channels_wake_and_the_others_stay(images, synthesis):
    codec = codec_with_silent(slice(None, None, 2))
    before = deviations(codec, images)
    silent = before < SILENT
    assert silent[::2].all()
    revive_latents(codec, synthesis, images)
    after = deviations(codec, images)
    assert torch.allclose(after[silent], torch.tensor(AWAKE), rtol=1e-3)
    assert torch.equal(after[~silent], before[~silent])
    weights = {name: value.clone() for name, value in codec.state_dict().items()}
    revive_latents(codec, synthesis, images)
    assert all(torch.equal(value, weights[name]) for name, value in codec.state_dict().items())


def test_what_is_decoded_does_not_hear_a_woken_channel_yet_but_its_weights_learn(images, synthesis):
    revive_latents(codec_with_silent(0), synthesis, images)
    y_hat = torch.randn(1, SMALL.latent_channels, 4, 4)
    other = y_hat.clone()
    other[:, 0] += 5
    x_hat = synthesis(y_hat)
    assert torch.equal(x_hat, synthesis(other))
    x_hat.square().sum().backward()
    assert synthesis.trunk.entries[0].weight.grad[:, 0].abs().sum() > 0


def test_a_woken_channel_is_expected_at_its_new_scale(images, synthesis):
    codec = codec_with_silent(1)
    torch.nn.init.normal_(codec.context.out.bias)
    revive_latents(codec, synthesis, images)
    features, known = torch.randn(1, SMALL.context_width, 4, 4), torch.randn(1, SMALL.latent_channels, 4, 4)
    mean, index = codec.context(known, 0, MIDDLE, features)
    assert torch.equal(mean[:, 1], torch.zeros_like(mean[:, 1]))
    assert torch.allclose(scale_of(index[:, 1]), torch.tensor(AWAKE), rtol=1e-4)
    assert SCALE_MIN < AWAKE < SCALE_MAX


def test_nothing_of_the_codec_hears_a_woken_channel_and_its_gains_undo_each_other(images, synthesis):
    codec = codec_with_silent(1)
    torch.nn.init.normal_(codec.log_inverse_gain.anchors)
    revive_latents(codec, synthesis, images)
    readers = codec.hyper_analysis[0], codec.context.known, synthesis.trunk.entries[0]
    assert all((reader.weight[:, 1] == 0).all() and reader.weight[:, 0].any() for reader in readers)
    y = torch.randn(1, SMALL.latent_channels, 4, 4)
    torch.testing.assert_close(codec.ungain(codec.gain(y, MIDDLE)[0], MIDDLE)[:, 1], y[:, 1])


def test_a_woken_channel_is_louder_by_one_factor_and_a_dead_one_stays_finite(images, synthesis):
    codec = codec_with_silent(1)
    last = codec.analysis.net[-1]
    with torch.no_grad():
        last.weight[2], last.bias[2] = 0, 0
        before = codec.analysis(images)[:, 1]
        revive_latents(codec, synthesis, images)
        after = codec.analysis(images)[:, 1]
    torch.testing.assert_close(after / after.std(), before / before.std(), rtol=1e-2, atol=1e-2)
    assert last.weight.isfinite().all() and last.bias.isfinite().all()
