"""Decoding by tiles: no pixel looks further than the margin, and no tile differs from the whole."""

import pytest
import torch

from hybridflow import tiling
from hybridflow.correction import Correction
from hybridflow.model import PRESETS
from hybridflow.pixel_decoder import REACH, PixelDecoder


def thin_decoder(preset):
    """Both decoders with a preset's depths and hardly any width; what they see does not depend on it."""
    torch.manual_seed(0)
    decoder = PixelDecoder(4, (4, 4, 4), preset.decoder_depths, 4)
    correction = Correction(4, (4, 4, 4), preset.decoder_depths)
    with torch.no_grad():
        for join in correction.joins:
            join.weight.normal_()
    return lambda codes, y_hat: decoder(codes, correction(y_hat))


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_no_pixel_sees_beyond_its_reach(preset):
    codes, y_hat = (torch.randn(1, 4, 20, 20, requires_grad=True) for _ in range(2))
    image = thin_decoder(preset)(codes, y_hat)
    image[..., 160:176, 160:176].abs().sum().backward()
    for latent in (codes, y_hat):
        seen = (latent.grad[0].abs().sum(0) > 0).any(0).nonzero().flatten()
        assert seen.min() >= 10 - REACH // 16 and seen.max() <= 10 + REACH // 16


@pytest.mark.parametrize("h, w", [(5, 7), (8, 9), (25, 18)])
@torch.inference_mode()
def test_tiles_make_the_same_picture(h, w, monkeypatch):
    monkeypatch.setattr(tiling, "TILE", 8)
    decode, calls = thin_decoder(PRESETS["base"]), []

    def counted(*latents):
        calls.append(latents[0].shape)
        return decode(*latents)

    latents = torch.randn(2, 1, 4, h, w)
    whole, tiled = decode(*latents), tiling.decode_tiled(counted, *latents)
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)
    assert len(calls) == -(-h // 8) * -(-w // 8)
    assert all(max(shape[-2:]) <= 8 + 2 * tiling.HALO for shape in calls)
