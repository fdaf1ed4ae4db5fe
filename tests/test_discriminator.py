"""The discriminator and its losses: shapes, samples kept apart, balance, and that it can tell and be fooled."""

import pytest
import torch

from hybridflow.training.discriminator import PatchDiscriminator, adaptive_weight, fooling_loss, judging_loss


def test_a_logit_for_every_eight_pixels_that_other_samples_do_not_change():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(8).eval()
    x = torch.rand(3, 3, 64, 96)
    logits = discriminator(x)
    assert logits.shape == (3, 1, 8, 12)
    torch.testing.assert_close(discriminator(x[1:2]), logits[1:2])


def test_a_logit_sees_38_pixels():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(8).eval()
    x = torch.rand(1, 3, 128, 128, requires_grad=True)
    discriminator(x)[0, 0, 8, 8].backward()
    seen = x.grad.abs().sum((0, 1)).nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [38, 38]


def test_hinge_losses_by_hand():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 0.5])
    assert float(judging_loss(real, fake)) == pytest.approx(0.5 * (0 + 1 + 0 + 1.5) / 2)
    assert float(fooling_loss(fake)) == pytest.approx(1.25)


def test_the_weight_makes_both_losses_pull_equally():
    layer = torch.tensor([1.0, 2.0], requires_grad=True)
    distortion, fooling = 6 * layer.sum(), 2 * layer.sum()
    assert float(adaptive_weight(distortion, fooling, layer)) == pytest.approx(3, rel=1e-3)
    assert float(adaptive_weight(1e9 * distortion, fooling, layer)) == 1e4
    assert layer.grad is None


def test_it_learns_to_tell_stripes_from_noise():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(8)
    optimiser = torch.optim.Adam(discriminator.parameters(), 2e-3)
    stripes = torch.zeros(4, 3, 32, 32)
    stripes[..., ::4] = 1
    for _ in range(60):
        optimiser.zero_grad()
        loss = judging_loss(discriminator(stripes), discriminator(torch.rand(4, 3, 32, 32)))
        loss.backward()
        optimiser.step()
    discriminator.eval()
    assert discriminator(stripes).mean() > discriminator(torch.rand(4, 3, 32, 32)).mean() + 0.5
