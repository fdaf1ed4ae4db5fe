"""By tiles: nothing looks further than the margin, and no tile differs from the whole."""

import pytest
import torch
import torch.nn.functional as F

from hybridflow import tiling
from hybridflow.correction import Correction
from hybridflow.image_encoder import ImageEncoder
from hybridflow.model import PRESETS
from hybridflow.pixel_decoder import PixelDecoder
from hybridflow.tiling import HALO, TILE, pixels_of, tiles


def thin_decoder(preset):
    """Both decoders with a preset's depths and hardly any width; what they see does not depend on it."""
    torch.manual_seed(0)
    decoder = PixelDecoder(4, (4, 4, 4), preset.decoder_depths, 4)
    correction = Correction(4, (4, 4, 4), preset.decoder_depths)
    with torch.no_grad():
        for join in correction.joins:
            join.weight.normal_()
    return lambda codes, y_hat: decoder(codes, correction(y_hat))


def thin_encoder(preset):
    torch.manual_seed(0)
    return ImageEncoder(4, (4, 4, 4), preset.encoder_depths)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_no_pixel_sees_beyond_its_reach(preset):
    codes, y_hat = (torch.randn(1, 4, 20, 20, requires_grad=True) for _ in range(2))
    image = thin_decoder(preset)(codes, y_hat)
    image[..., 160:176, 160:176].abs().sum().backward()
    for latent in (codes, y_hat):
        seen = (latent.grad[0].abs().sum(0) > 0).any(0).nonzero().flatten()
        assert seen.min() >= 10 - HALO and seen.max() <= 10 + HALO


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_no_latent_sees_beyond_its_reach(preset):
    image = torch.rand(1, 3, 320, 320, requires_grad=True)
    thin_encoder(preset)(image)[..., 10, 10].abs().sum().backward()
    seen = (image.grad[0].abs().sum(0) > 0).any(0).nonzero().flatten()
    assert seen.min() >= 16 * (10 - HALO) and seen.max() < 16 * (11 + HALO)


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


@pytest.mark.parametrize("h, w", [(5, 7), (8, 9), (25, 18)])
@torch.inference_mode()
def test_tiles_make_the_same_latents(h, w, monkeypatch):
    monkeypatch.setattr(tiling, "TILE", 8)
    encode, image = thin_encoder(PRESETS["base"]), torch.rand(2, 3, 16 * h, 16 * w)
    torch.testing.assert_close(tiling.encode_tiled(encode, image), encode(image), atol=1e-5, rtol=0)


@pytest.mark.parametrize("step", [1, 8])
@pytest.mark.parametrize("size", [4, 63, 64, 65, 129, 200, 577])
def test_parts_cover_a_side_and_none_is_too_small(size, step):
    parts = [rows for _, _, (rows, _) in tiles(size, 1, step)]
    assert parts[0].start == 0 and parts[-1].stop == size
    assert all(a.stop == b.start and b.start % step == 0 for a, b in zip(parts, parts[1:]))
    assert all(min(size, 24) <= part.stop - part.start <= TILE + 8 for part in parts)


def test_tiles_are_where_they_belong(monkeypatch):
    monkeypatch.setattr(tiling, "TILE", 16)
    latent = torch.rand(1, 1, 40, 21)
    image, seen = F.interpolate(latent, scale_factor=16), torch.zeros(640, 336)
    for window, core, part in tiles(40, 21, 8):
        decoded = F.interpolate(latent[(..., *window)], scale_factor=16)
        assert torch.equal(decoded[(..., *pixels_of(core))], image[(..., *pixels_of(part))])
        seen[pixels_of(part)] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("size", [5, 64, 65, 200])
def test_windows_have_their_margin_as_far_as_the_map_goes(size):
    for (window, _), (core, _), (part, _) in tiles(size, 1):
        assert (window.start, window.stop) == (max(0, part.start - HALO), min(size, part.stop + HALO))
        assert window.start + core.start == part.start and window.start + core.stop == part.stop
